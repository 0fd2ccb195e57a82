"""The types that travel between Shoal's parts: prompts, completions, groups and batches.

Everything here is a plain dataclass. `to_dict` gives JSON- and msgpack-ready values (no pickle),
`X.from_dict` builds the object back. Token ids are `list[int]`; log-probs are natural logarithms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Message = dict[str, Any]
"""One message of a conversation: `role`, `content`, and whatever else the chat template reads."""

FORMAT_PART = "format"
"""The part of a reward that judges a completion's form; it does not say whether the answer is right."""


EQUAL_WITHIN = 1e-9
"""Rewards that differ by less, relative to the largest of them, are equal: sums in another order differ by rounding."""


def all_equal(rewards: Sequence[float]) -> bool:
    """Whether known rewards differ by rounding alone; True for none."""
    return not rewards or max(rewards) - min(rewards) <= EQUAL_WITHIN * max(map(abs, rewards))


class StopReason(StrEnum):
    """Why a completion ended."""

    STOP = "stop"  # an end-of-sequence id or a stop string; both stay in the sampled ids
    LENGTH = "length"  # the token limit
    TURNS = "turns"  # the limit of a conversation's turns
    ABORT = "abort"  # taken back by the trainer
    ERROR = "error"  # the engine or the environment failed; never trained on

    @property
    def truncated(self) -> bool:
        """Whether a limit ended the completion, so that it might have gone on."""
        return self in (StopReason.LENGTH, StopReason.TURNS)


@dataclass
class Prompt:
    """One question, tokenised once. `id` is stable across runs: it seeds sampling. `columns` are the columns of its row
    that its layout does not read."""

    id: str
    token_ids: list[int]
    ground_truth: Any = None
    verifiers: list[str] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)
    source: str = ""
    columns: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Prompt:
        return cls(**row)


@dataclass
class Segment:
    """A stretch of sampled tokens and the context they were sampled after.

    `logprobs`, `mask`, `ref_logprobs` and `advantages` have one entry per sampled token.
    `logprobs` are the sampler's, of the distribution that was sampled (temperature applied);
    `ref_logprobs` are the reference's at temperature 1. `mask` is False for tokens that stand in
    `sampled_ids` but are not trained (a tool's output). `advantages`, when given, replace the group's.
    """

    context_ids: list[int]
    sampled_ids: list[int]
    logprobs: list[float]
    mask: list[bool]
    ref_logprobs: list[float] | None = None
    advantages: list[float] | None = None


@dataclass
class Completion:
    """One answer to one prompt: one segment in the single-turn case, several in a conversation.

    `versions` are runs of (index of the first sampled token, weight version), over the sampled tokens
    of all segments. `reward` is None while unknown, and stays None when it could not be computed.
    `penalties` (KL to the reference, length) are taken off the reward before the group's statistics.
    `text` is for verifiers and people; it is never tokenised again.
    """

    segments: list[Segment]
    stop_reason: StopReason
    text: str = ""
    versions: list[tuple[int, int]] = field(default_factory=list)
    reward: float | None = None
    reward_parts: dict[str, float | None] = field(default_factory=dict)
    penalties: dict[str, float] = field(default_factory=dict)
    advantage: float | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def num_sampled(self) -> int:
        """Sampled tokens over all segments, trained or not."""
        return sum(len(segment.sampled_ids) for segment in self.segments)

    @property
    def first_version(self) -> int:
        """The oldest weights that a token of this completion was sampled with; -1 when unknown."""
        return min((version for _, version in self.versions), default=-1)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "stop_reason": self.stop_reason.value}

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Completion:
        return cls(
            **{
                **row,
                "segments": [Segment(**segment) for segment in row["segments"]],
                "stop_reason": StopReason(row["stop_reason"]),
                "versions": [(start, version) for start, version in row["versions"]],
            }
        )


@dataclass
class Group:
    """The G completions of one prompt. Stays whole until its advantages exist.

    A group from a foreign environment may have no prompt. `epoch` is how often the data had been gone
    through when the prompt was drawn, so (id, epoch) names a group within a run.
    """

    id: str
    completions: list[Completion]
    prompt: Prompt | None = None
    epoch: int = 0

    @property
    def rewards(self) -> list[float | None]:
        return [completion.reward for completion in self.completions]

    @property
    def known_rewards(self) -> list[float]:
        return [reward for reward in self.rewards if reward is not None]

    @property
    def zero_variance(self) -> bool:
        """True where all known rewards are equal (`all_equal`), so that every advantage is exactly 0."""
        return all_equal(self.known_rewards)

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "epoch": self.epoch,
            "prompt": self.prompt.to_dict() if self.prompt else None,
            "completions": [completion.to_dict() for completion in self.completions],
        }

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Group:
        return cls(
            id=row["id"],
            epoch=row["epoch"],
            prompt=Prompt.from_dict(row["prompt"]) if row["prompt"] else None,
            completions=[Completion.from_dict(completion) for completion in row["completions"]],
        )


@dataclass
class TrainSequence:
    """One segment, ready to be trained on.

    `ids` [context + sampled] int64; the arrays below have one entry per sampled token. `completion` and
    `group` index within the batch: the segments of one completion share the former, and sequences of one
    group may share their context's forward pass. `completion_tokens` counts the trained tokens of the
    whole completion, over all its segments. `temperature` is the sampler's where it is not the batch's.
    """

    completion: int
    group: int
    ids: NDArray[np.int64]
    context: int
    mask: NDArray[np.bool_]
    sampler_logprobs: NDArray[np.float32]
    advantages: NDArray[np.float64]
    completion_tokens: int
    ref_logprobs: NDArray[np.float32] | None = None
    temperature: float | None = None

    @property
    def trained_tokens(self) -> int:
        """The True entries of the mask."""
        return int(np.count_nonzero(self.mask))

    @property
    def has_signal(self) -> bool:
        """True where the advantage of a trained token is not 0."""
        return bool(np.count_nonzero(self.advantages[self.mask]))


Place = tuple[str, str, str]
"""Where a part of a run is and what it does: node (empty: this machine), part, state in words."""


@dataclass
class Batch:
    """What a learner trains on in one step: sequences with advantages, in the groups' order.

    Completions without a reward and masked truncated ones are not in here; completions of zero advantage
    are, because the normalisers count them. `temperature` and `max_new_tokens` are the sampler's.
    `completions` counts distinct completions, `trained_tokens` the True entries of all masks.
    """

    sequences: list[TrainSequence]
    completions: int
    trained_tokens: int
    temperature: float
    max_new_tokens: int
