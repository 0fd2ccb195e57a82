"""The policy that a KL is measured to: its contract, and the KL's part of the reward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from shoal.algorithms.kl import reward_kl
from shoal.learners.base import Learner
from shoal.types import Group, Segment


class Reference(ABC):
    """Scores completions, at temperature 1 whatever they were sampled at: the KL compares two models."""

    @abstractmethod
    def score(self, groups: Sequence[Group]) -> None:
        """Fills `ref_logprobs` of every segment that its environment gave none.

        Raises:
            EngineError: a server that scores does not answer.
        """

    def follow(self, version: int) -> bool:
        """Called after every trained batch; True where the reference moved towards the policy."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """What moved since the start, for a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""

    def close(self) -> None:
        """Frees what the reference holds; ends what it started."""


def unscored_segments(groups: Sequence[Group]) -> list[Segment]:
    """All segments without reference log-probs, in order."""
    every = [segment for group in groups for completion in group.completions for segment in completion.segments]
    return [segment for segment in every if segment.ref_logprobs is None]


def penalise_with_kl(groups: Sequence[Group], learner: Learner, kl_coef: float) -> None:
    """Sets `penalties["kl"]` of each completion: kl_coef times the sum over its trained tokens of l_old - l_ref.

    Both at temperature 1; `Reference.score` must have run on the same groups.
    """
    owners = [
        (completion, segment) for group in groups for completion in group.completions for segment in completion.segments
    ]
    found = learner.logprobs([segment for _, segment in owners])
    for group in groups:
        for completion in group.completions:
            completion.penalties["kl"] = 0.0
    for (completion, segment), row in zip(owners, found, strict=True):
        completion.penalties["kl"] += kl_coef * reward_kl(row, _reference_of(segment), segment.mask)


def _reference_of(segment: Segment) -> list[float]:
    """The segment's reference log-probs. Raises ValueError where it was not scored."""
    if segment.ref_logprobs is None:
        raise ValueError("a segment has no reference log-probs: call Reference.score first")
    return segment.ref_logprobs
