r"""Competition mathematics in the layout of MATH (hendrycks): a `problem`, and a `solution` with a `\boxed{answer}`.

Data with `question` and `answer` columns reads the same way; an answer of its own is taken as it stands.
"""

from __future__ import annotations

from shoal.errors import DataError
from shoal.rewards.answers.extract import last_boxed
from shoal.tasks.layouts.base import Example, Layout, Row, pick, question
from shoal.types import Prompt

PROBLEM = ("problem", "question")
ANSWER = ("answer", "solution")


def read_math(row: Row) -> Example:
    r"""Raises DataError where a solution has no `\boxed`."""
    text = pick(row, PROBLEM)
    if row.get("answer") is not None:
        answer = str(row["answer"]).strip()
        return Example(question(text), last_boxed(answer) or answer)
    boxed = last_boxed(row["solution"])
    if boxed is None:
        raise DataError("the solution has no \\boxed answer whose braces close")
    return Example(question(text), boxed)


def right_answer(prompt: Prompt) -> str:
    """An answer to a MATH prompt that earns the full reward."""
    return f"\\boxed{{{prompt.ground_truth}}}"


LAYOUT = Layout(
    read=read_math,
    columns=(PROBLEM, ANSWER),
    verifiers={"math": 1.0},
    demonstrate=right_answer,
)
