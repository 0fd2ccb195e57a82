"""What `shoal data preview` prints: rendered prompts, lengths, and the rows that are left out, source by source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from transformers import PreTrainedTokenizerBase

from shoal.config import ShoalConfig
from shoal.models.tokenizer_notes import tokenizer_notes
from shoal.tasks.dataset import DataSplit, read_splits, task_of
from shoal.types import Prompt

BINS = 8
BAR = 40
DROPPED_SHOWN = 3
WIDTH = 100


def preview_lines(cfg: ShoalConfig, tokenizer: PreTrainedTokenizerBase, rows: int) -> Iterator[str]:
    """The preview, line by line, with the first `rows` prompts of each source's training split.

    Raises:
        DataError: as `build_task`.
    """
    if cfg.data.task != "story":
        yield from (f"note: {note}" for note in tokenizer_notes(tokenizer))
    splits = read_splits(cfg, tokenizer)
    task = task_of(cfg, splits)
    for split in splits:
        source = split.source
        yield f"== {source.name}, {split.name}: {len(split.used)} prompts, {len(split.too_long)} left out"
        path = (source.eval_path if split.evaluation else None) or source.path
        yield f"   layout {source.task}" + (f", {path}" if path else "")
        yield from _lengths(split)
        for prompt in split.too_long[:DROPPED_SHOWN]:
            yield f"   left out: {prompt.id}, {len(prompt.token_ids)} tokens: {_first_words(prompt)}"
        if len(split.too_long) > DROPPED_SHOWN:
            yield f"   left out: {len(split.too_long) - DROPPED_SHOWN} more"
        for prompt in [] if split.evaluation else split.used[:rows]:
            yield f"-- {prompt.id}, {len(prompt.token_ids)} tokens"
            yield str(tokenizer.decode(prompt.token_ids))
            yield f"-- ground truth {_short(repr(prompt.ground_truth))}{_judges(prompt)}"
    yield f"== in all: {len(task.train)} prompts to train on, {len(task.evaluation)} to evaluate on"


def _lengths(split: DataSplit) -> Iterator[str]:
    """A histogram of prompt lengths, of all rows, so that a limit can be chosen by it."""
    lengths = sorted(len(prompt.token_ids) for prompt in [*split.used, *split.too_long])
    low, high = lengths[0], lengths[-1]
    yield f"   tokens: shortest {low}, median {median(lengths):g}, longest {high}"
    step = (high - low) // BINS + 1
    counts = [sum(start <= length < start + step for length in lengths) for start in range(low, high + 1, step)]
    for number, count in enumerate(counts):
        start = low + number * step
        bar = "#" * -(-count * BAR // max(counts))
        yield f"   {start:>6} to {min(start + step - 1, high):<6} {count:>7} {bar}".rstrip()


def _first_words(prompt: Prompt) -> str:
    last = next(message for message in reversed(prompt.messages) if message["role"] == "user")
    return _short(" ".join(str(last["content"]).split()))


def _short(text: str) -> str:
    return text if len(text) <= WIDTH else f"{text[:WIDTH]}..."


def _judges(prompt: Prompt) -> str:
    names: Sequence[str] = prompt.verifiers
    return f", judged by {', '.join(names)}" if names else ""
