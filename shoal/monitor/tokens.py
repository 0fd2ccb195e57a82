"""The tokens of a completion, one by one, for the strip of `shoal view`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

from shoal.types import Completion

DIGITS = 5


def token_columns(
    completion: Completion, learner: Sequence[Sequence[float]] | None, decode: Callable[[list[int]], str] | None
) -> dict[str, Any]:
    """Columns with one entry for each sampled token, over all segments: `text`, `sampler` and `learner` log-probs,
    `advantage`, `mask`. `segments` are pairs of a later segment's first token and what it was sampled after.

    `learner` are its log-probs per segment when the step began, [sampled] each; without them there is no such column.
    Numbers are rounded to 5 digits after
    the point; one that is not finite is None. Where all tokens have the completion's advantage, that stands alone.
    """
    texts: list[str] = []
    segments: list[list[Any]] = []
    advantages: list[float | None] = []
    own_advantages = any(segment.advantages is not None for segment in completion.segments)
    for segment in completion.segments:
        if texts and decode is not None:
            segments.append([len(texts), decode(segment.context_ids)])
        texts += token_texts(segment.sampled_ids, decode)
        own = segment.advantages
        advantages += [completion.advantage] * len(segment.sampled_ids) if own is None else list(own)
    columns: dict[str, Any] = {
        "text": texts,
        "sampler": [_short(value) for segment in completion.segments for value in segment.logprobs],
        "advantage": [_short(value) for value in advantages] if own_advantages else _short(completion.advantage),
        "mask": [int(value) for segment in completion.segments for value in segment.mask],
        "segments": segments,
    }
    if learner is not None:
        columns["learner"] = [_short(value) for row in learner for value in row]
    return columns


def token_texts(ids: Sequence[int], decode: Callable[[list[int]], str] | None) -> list[str]:
    """What each token adds to the text. Where a letter takes several tokens, the last of them has it and the others are
    empty; without anything to decode with, the ids themselves."""
    if decode is None:
        return [str(id_) for id_ in ids]
    texts: list[str] = []
    start = 0  # of the tokens that are still without text
    for place in range(len(ids)):
        # The token before goes along: a tokenizer may drop a space at the beginning of what it decodes.
        before = decode(list(ids[max(start - 1, 0) : start]))
        text = decode(list(ids[max(start - 1, 0) : place + 1]))
        if text.endswith("\ufffd") and place + 1 - start < 4 and place + 1 < len(ids):
            texts.append("")
            continue
        texts.append(text[len(before) :] if text.startswith(before) else decode(list(ids[start : place + 1])))
        start = place + 1
    return texts


def _short(value: float | None) -> float | None:
    return round(float(value), DIGITS) if value is not None and isfinite(value) else None
