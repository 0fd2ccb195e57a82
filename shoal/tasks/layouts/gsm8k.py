"""Grade-school mathematics in the layout of openai/gsm8k: `question`, and an `answer` that ends in `#### 18`."""

from __future__ import annotations

from shoal.errors import DataError
from shoal.tasks.layouts.base import Example, Layout, Row, question
from shoal.types import Prompt

MARK = "####"


def read_gsm8k(row: Row) -> Example:
    """Raises DataError where the answer has no `####`."""
    _, mark, answer = str(row["answer"]).rpartition(MARK)
    if not mark:
        raise DataError(f"the answer has no '{MARK}' before its number")
    return Example(question(row["question"]), answer.strip())


def right_answer(prompt: Prompt) -> str:
    """An answer to a GSM8K prompt that earns the full reward."""
    return f"{MARK} {prompt.ground_truth}"


LAYOUT = Layout(
    read=read_gsm8k,
    columns=(("question",), ("answer",)),
    verifiers={"gsm8k": 1.0},
    demonstrate=right_answer,
    hub=("openai/gsm8k", "main"),
)
