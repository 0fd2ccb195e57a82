r"""Competition mathematics in the layout of MATH (hendrycks): a `problem`, and a `solution` with a `\boxed{answer}`.

Data with `question` and `answer` columns reads the same way; an answer of its own is taken as it stands, and of a list
of answers any is right.
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
        answers = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
        read = [last_boxed(answer) or answer for answer in (str(answer).strip() for answer in answers)]
        if not read:
            raise DataError("the list of answers is empty")
        return Example(question(text), read if isinstance(row["answer"], list) else read[0])
    boxed = last_boxed(row["solution"])
    if boxed is None:
        raise DataError("the solution has no \\boxed answer whose braces close")
    return Example(question(text), boxed)


def right_answer(prompt: Prompt) -> str:
    """An answer to a MATH prompt that earns the full reward."""
    truth = prompt.ground_truth
    return f"\\boxed{{{truth[0] if isinstance(truth, list) else truth}}}"


LAYOUT = Layout(
    read=read_math,
    columns=(PROBLEM, ANSWER),
    verifiers={"math": 1.0},
    demonstrate=right_answer,
)
