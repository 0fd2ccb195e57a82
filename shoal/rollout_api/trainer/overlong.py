"""Sequences of more tokens than the trainer takes."""

from __future__ import annotations

from shoal.types import Group, Segment


def fit(group: Group, seq_len: int, how: str) -> int:
    """How many of the group's sequences are longer than `seq_len` tokens, context included.

    `truncate` cuts what is too much off them, `mask` takes all their tokens out of training; both leave the rewards.
    `drop` changes nothing: the group is the caller's to leave out.
    """
    segments = [segment for completion in group.completions for segment in completion.segments]
    overlong = [one for one in segments if len(one.context_ids) + len(one.sampled_ids) > seq_len]
    for segment in overlong:
        if how == "truncate":
            _cut(segment, max(seq_len - len(segment.context_ids), 0))
        elif how == "mask":
            segment.mask = [False] * len(segment.mask)
    return len(overlong)


def _cut(segment: Segment, kept: int) -> None:
    for name in ("sampled_ids", "logprobs", "mask", "ref_logprobs", "advantages"):
        values = getattr(segment, name)
        if values is not None:
            setattr(segment, name, values[:kept])
