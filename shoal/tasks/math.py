r"""Competition mathematics in the layout of MATH (hendrycks): `problem`, and a `solution` with the answer in `\boxed{}`.

Data with `question` and `answer` columns reads the same way; an answer of its own is taken as it stands.
"""

from __future__ import annotations

from shoal.errors import DataError
from shoal.tasks.layout import Example, Layout, Row, pick, question
from shoal.types import Prompt

PROBLEM = ("problem", "question")
ANSWER = ("answer", "solution")
BOXES = ("\\boxed", "\\fbox")


def read_math(row: Row) -> Example:
    r"""Raises DataError where a solution has no `\boxed`."""
    text = pick(row, PROBLEM)
    if row.get("answer") is not None:
        answer = str(row["answer"]).strip()
        return Example(question(text), boxed_answer(answer) or answer)
    answer = boxed_answer(row["solution"])
    if answer is None:
        raise DataError("the solution has no \\boxed answer whose braces close")
    return Example(question(text), answer)


def boxed_answer(text: str) -> str | None:
    r"""What stands in the last `\boxed{...}`, or after the last `\boxed `; None where there is none that closes."""
    start, box = max((text.rfind(box), box) for box in BOXES)
    if start < 0:
        return None
    rest = text[start + len(box) :].lstrip()
    if not rest.startswith("{"):
        return rest.split("$")[0].split()[0].rstrip(".") if rest.split("$")[0].split() else None
    depth = 0
    for end, letter in enumerate(rest):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return rest[1:end].strip()
    return None


def right_answer(prompt: Prompt) -> str:
    """An answer to a MATH prompt that earns the full reward."""
    return f"\\boxed{{{prompt.ground_truth}}}"


LAYOUT = Layout(
    read=read_math,
    columns=(PROBLEM, ANSWER),
    verifiers={"math": 1.0},
    demonstrate=right_answer,
)
