"""Grade-school mathematics in the layout of openai/gsm8k: `question`, and an `answer` that ends in `#### 18`."""

from __future__ import annotations

from logging import getLogger

from shoal.config.data import DataConfig
from shoal.errors import DataError
from shoal.tasks.layout import Example, Layout
from shoal.tasks.rows import is_single_file, read_rows
from shoal.types import Prompt

logger = getLogger(__name__)

HUB_NAME = "openai/gsm8k"
HUB_SUBSET = "main"
MARK = "####"


def gsm8k_examples(data: DataConfig, *, evaluation: bool) -> list[Example]:
    """The rows of the training or the evaluation split. Ids are numbered by row, so a filter does not change them.

    Raises:
        DataError: the data cannot be read, a column is missing, or an answer has no `####`.
    """
    path = (data.eval_path if evaluation else None) or data.path or HUB_NAME
    subset = data.subset or (HUB_SUBSET if path == HUB_NAME else None)
    split = data.eval_split if evaluation else data.split
    if evaluation and is_single_file(path) and path == data.path:
        logger.warning("evaluation uses the training file %s: set data.eval_path to measure on other questions", path)
    examples = []
    for index, row in enumerate(read_rows(path, subset=subset, split=split, columns=("question", "answer"))):
        _, mark, answer = row["answer"].rpartition(MARK)
        if not mark:
            raise DataError(f"{path}, split {split}, row {index}: the answer has no '{MARK}' before its number")
        examples.append(
            Example(id=f"gsm8k/{split}/{index}", question=row["question"], ground_truth=answer.strip(), source="gsm8k")
        )
    return examples


def right_answer(prompt: Prompt) -> str:
    """An answer to a GSM8K prompt that earns the full reward."""
    return f"{MARK} {prompt.ground_truth}"


LAYOUT = Layout(examples=gsm8k_examples, verifiers={"gsm8k": 1.0}, demonstrate=right_answer)
