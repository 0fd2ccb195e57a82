"""From one completion to its training sequences: checks, token advantages, arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shoal.errors import DataError
from shoal.types import Completion, TrainSequence

SegmentAdvantages = list[NDArray[np.float64]]
"""One array [sampled] for each segment of a completion."""


def num_trained(completion: Completion) -> int:
    """The completion's trained tokens, over all segments."""
    return sum(segment.mask.count(True) for segment in completion.segments)


def has_own_advantages(completion: Completion) -> bool:
    """True where the environment gave token advantages for some segment."""
    return any(segment.advantages is not None for segment in completion.segments)


def check_completion(completion: Completion, surrogate: str, where: str) -> None:
    """Refuses a completion that cannot be trained on as it is.

    Raises:
        DataError: lists of a segment differ in length, a segment has no context, or token advantages differ within a
            completion under gspo. `where` names the completion.
    """
    for segment in completion.segments:
        sampled = len(segment.sampled_ids)
        for name in ("logprobs", "mask", "ref_logprobs", "advantages"):
            values = getattr(segment, name)
            if values is not None and len(values) != sampled:
                raise DataError(f"{where}: {len(values)} {name} for {sampled} sampled tokens; give one for each token")
        if not segment.context_ids:
            raise DataError(f"{where}: the first token of a segment without context has no log-prob; give it a context")
    own = {advantage for segment in completion.segments for advantage in segment.advantages or ()}
    if surrogate == "gspo" and len(own) > 1:
        raise DataError(f"{where}: gspo takes one advantage per completion, not one per token; use clip or cispo")


def token_advantages(completion: Completion, advantage: float | None) -> SegmentAdvantages | None:
    """Each segment's own advantages where it has them, the group's `advantage` elsewhere.

    None where a segment has neither. All zeros under the override {"set_advantage_to_zero": true}.
    """
    if advantage is None and any(segment.advantages is None for segment in completion.segments):
        return None
    if completion.overrides.get("set_advantage_to_zero"):
        return [np.zeros(len(segment.sampled_ids)) for segment in completion.segments]
    return [
        np.full(len(segment.sampled_ids), advantage)
        if segment.advantages is None
        else np.array(segment.advantages, dtype=np.float64)
        for segment in completion.segments
    ]


def mean_advantage(completion: Completion, advantage: float | None, tokens: SegmentAdvantages | None) -> float | None:
    """What is shown as the completion's advantage: the group's, or the mean of its own over its trained tokens."""
    if tokens is None or not num_trained(completion):
        return advantage
    if not has_own_advantages(completion) and not completion.overrides.get("set_advantage_to_zero"):
        return advantage
    trained = [values[segment.mask] for segment, values in zip(completion.segments, tokens, strict=True)]
    return float(np.concatenate(trained).mean())


def train_sequences(completion: Completion, tokens: SegmentAdvantages, number: int, group: int) -> list[TrainSequence]:
    """One sequence for each segment that has a trained token. `number` and `group` index within the batch. The override
    {"temperature": T} says that this completion was sampled at another temperature than the batch."""
    total = num_trained(completion)
    return [
        TrainSequence(
            completion=number,
            group=group,
            ids=np.array(segment.context_ids + segment.sampled_ids, dtype=np.int64),
            context=len(segment.context_ids),
            mask=np.array(segment.mask, dtype=np.bool_),
            sampler_logprobs=np.array(segment.logprobs, dtype=np.float32),
            advantages=advantages,
            completion_tokens=total,
            ref_logprobs=None if segment.ref_logprobs is None else np.array(segment.ref_logprobs, dtype=np.float32),
            temperature=completion.overrides.get("temperature"),
        )
        for segment, advantages in zip(completion.segments, tokens, strict=True)
        if any(segment.mask)
    ]
