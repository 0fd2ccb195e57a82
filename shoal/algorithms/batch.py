"""From scored groups to a batch: penalties, advantages over whole groups, what is left out, normalisers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from shoal.algorithms.advantages import group_advantages
from shoal.algorithms.sequences import (
    SegmentAdvantages,
    check_completion,
    has_own_advantages,
    mean_advantage,
    num_trained,
    token_advantages,
    train_sequences,
)
from shoal.config.nodes.algorithm import AlgorithmConfig, OverlongConfig
from shoal.errors import DataError
from shoal.types import Batch, Group, StopReason, TrainSequence, all_equal

FAILED = (StopReason.ERROR, StopReason.ABORT)


@dataclass
class BatchReport:
    """What `make_batch` did; counts of groups or completions.

    `positions` gives, for each completion number of the batch, its index among all completions of all groups;
    `left_out`, by such an index, why a completion is not in the batch.
    """

    groups: int = 0
    dropped_groups: int = 0  # fewer than two known rewards
    zero_variance_groups: int = 0  # all shaped rewards equal, kept or dropped
    zero_variance_dropped: int = 0
    made_up_groups: int = 0
    completions: int = 0
    failed: int = 0  # stop reason error or abort
    missing_rewards: int = 0  # of the completions that did not fail
    masked_truncated: int = 0
    untrained: int = 0  # no token is trained
    zero_advantage: int = 0  # in the batch, with advantage 0 on every trained token
    positions: list[int] = field(default_factory=list)
    left_out: dict[int, str] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """`batch/..._groups`: share of the step's groups; `batch/...`: share of its completions."""
        of_groups = {
            "batch/dropped_groups": self.dropped_groups,
            "batch/zero_variance_groups": self.zero_variance_groups,
            "batch/zero_variance_dropped_groups": self.zero_variance_dropped,
        }
        of_completions = {
            "batch/failed": self.failed,
            "batch/missing_rewards": self.missing_rewards,
            "batch/masked_truncated": self.masked_truncated,
            "batch/untrained": self.untrained,
            "batch/zero_advantage": self.zero_advantage,
            "batch/trained": len(self.positions),
        }
        return {
            **{name: count / max(self.groups, 1) for name, count in of_groups.items()},
            **{name: count / max(self.completions, 1) for name, count in of_completions.items()},
        }


def make_batch(
    groups: Sequence[Group],
    algorithm: AlgorithmConfig,
    *,
    temperature: float,
    max_new_tokens: int,
    max_positions: int | None = None,
    made_up: bool = False,
) -> tuple[Batch, BatchReport]:
    """Computes advantages over whole groups, then leaves out what must not be trained on.

    Sets `penalties["overlong"]` (where it is switched on) and `advantage` of each completion. The reward that counts
    is the reward less all penalties; `penalties["kl"]` is the caller's. Advantages of a segment replace the group's;
    the completion's `advantage` is then their mean over its trained tokens.

    Left out, each counted in the report: failed completions (before the statistics), groups with fewer than two known
    rewards and completions without a reward (unless they bring advantages of their own), truncated ones under
    `mask_truncated` (they are in the statistics), those without a trained token, and groups of equal rewards under
    `zero_variance=drop`. The override {"set_advantage_to_zero": true} keeps a completion in the normaliser with
    advantage 0.

    `max_positions` are the tokens that the model can hold: where they leave a completion less than `max_new_tokens`,
    that is the limit which its overlong penalty goes by.

    `made_up` replaces the advantages of groups whose rewards are all equal by +1, -1, +1, ...: a smoke test.

    Raises:
        DataError: a reward is not finite, a segment's lists differ in length, it has no context, or token advantages
            differ within a completion under a surrogate that takes one per completion.
    """
    report = BatchReport(groups=len(groups), completions=sum(len(group.completions) for group in groups))
    sequences: list[TrainSequence] = []
    offset = used_groups = 0
    for group in groups:
        _set_overlong(group, algorithm, max_new_tokens, max_positions)
        kept = _trainable(group, algorithm, report, made_up=made_up)
        for index, advantages in kept.items():
            made = train_sequences(group.completions[index], advantages, len(report.positions), used_groups)
            sequences += made
            report.positions.append(offset + index)
            report.zero_advantage += not any(sequence.has_signal for sequence in made)
        for index in range(len(group.completions)):
            if index not in kept:
                report.left_out[offset + index] = _why_left_out(group, index, algorithm)
        used_groups += bool(kept)
        offset += len(group.completions)
    batch = Batch(
        sequences=sequences,
        completions=len(report.positions),
        trained_tokens=sum(sequence.trained_tokens for sequence in sequences),
        temperature=temperature,
        max_new_tokens=max_new_tokens,
    )
    return batch, report


def overlong_penalty(num_tokens: int, max_new_tokens: int, overlong: OverlongConfig) -> float:
    """0 up to max_new_tokens - buffer, then linear, `penalty` from max_new_tokens on (DAPO, arXiv 2503.14476)."""
    over = num_tokens - (max_new_tokens - overlong.buffer)
    if num_tokens >= max_new_tokens:
        return overlong.penalty
    return overlong.penalty * over / overlong.buffer if over > 0 else 0.0


def token_weights(
    sequences: Sequence[TrainSequence], aggregation: str, max_new_tokens: int
) -> list[NDArray[np.float64]]:
    """The weight of each sampled token in the loss of one optimizer step, per sequence [sampled]; 0 where untrained.

    `sequences` are all of that step, over all micro-batches and ranks, in whole completions. `token`: 1 / trained
    tokens. `sequence`: 1 / (the completion's trained tokens x completions). `constant`: 1 / (completions x
    max_new_tokens), Dr. GRPO (arXiv 2503.20783).

    Raises:
        ValueError: a completion's segments are not all there, or the aggregation is unknown.
    """
    trained: dict[int, int] = {}
    for sequence in sequences:
        trained[sequence.completion] = trained.get(sequence.completion, 0) + sequence.trained_tokens
    for sequence in sequences:
        if trained[sequence.completion] != sequence.completion_tokens:
            raise ValueError(f"completion {sequence.completion} is split over optimizer steps")
    if aggregation == "token":
        scale = dict.fromkeys(trained, 1 / max(sum(trained.values()), 1))
    elif aggregation == "sequence":
        scale = {completion: 1 / (tokens * len(trained)) for completion, tokens in trained.items()}
    elif aggregation == "constant":
        scale = {completion: 1 / (len(trained) * max_new_tokens) for completion in trained}
    else:
        raise ValueError(f"aggregation {aggregation!r}: token, sequence or constant")
    return [np.where(sequence.mask, scale[sequence.completion], 0.0) for sequence in sequences]


def _trainable(
    group: Group, algorithm: AlgorithmConfig, report: BatchReport, *, made_up: bool
) -> dict[int, SegmentAdvantages]:
    """Sets the advantages of one group; gives those to train on by the completion's index in it."""
    sampled = [index for index, one in enumerate(group.completions) if one.stop_reason not in FAILED]
    report.failed += len(group.completions) - len(sampled)
    for index in sampled:
        check_completion(group.completions[index], algorithm.surrogate, f"group {group.id}, completion {index}")
    rewards = [_shaped_reward(group, index) for index in sampled]
    report.missing_rewards += rewards.count(None)
    advantages = group_advantages(rewards, algorithm)
    for completion in group.completions:
        completion.advantage = None
    kept: dict[int, SegmentAdvantages] = {}
    for index, advantage in zip(sampled, advantages, strict=True):
        completion = group.completions[index]
        tokens = token_advantages(completion, advantage)
        completion.advantage = mean_advantage(completion, advantage, tokens)
        trained = num_trained(completion)
        truncated = completion.stop_reason.truncated and algorithm.mask_truncated
        report.untrained += not trained
        report.masked_truncated += truncated
        if trained and not truncated and tokens is not None:
            kept[index] = tokens
    with_own = any(has_own_advantages(group.completions[index]) for index in kept)
    known = [reward for reward in rewards if reward is not None]
    if len(known) < 2:
        report.dropped_groups += not with_own
    elif all_equal(known) and not with_own:
        report.zero_variance_groups += 1
        if made_up and kept:
            report.made_up_groups += 1
            for number, index in enumerate(kept):
                completion = group.completions[index]
                completion.advantage = -1.0 if number % 2 else 1.0
                kept[index] = [np.full(len(one.sampled_ids), completion.advantage) for one in completion.segments]
        elif algorithm.zero_variance == "drop":
            report.zero_variance_dropped += 1
            return {}
    return kept


def _why_left_out(group: Group, index: int, algorithm: AlgorithmConfig) -> str:
    completion = group.completions[index]
    if completion.stop_reason in FAILED:
        return f"stop reason {completion.stop_reason}"
    if not num_trained(completion):
        return "no token of it is trained"
    if completion.stop_reason == StopReason.LENGTH and algorithm.mask_truncated:
        return "truncated (algorithm.mask_truncated=true)"
    if completion.reward is None:
        return "its reward is missing"
    if len(group.known_rewards) < 2:
        return "its group has fewer than two known rewards"
    return "all rewards of its group are equal (algorithm.zero_variance=drop)"


def _set_overlong(group: Group, algorithm: AlgorithmConfig, max_new_tokens: int, max_positions: int | None) -> None:
    """The overlong penalty of each completion that did not fail, by the limit that bound it."""
    if algorithm.overlong.penalty <= 0:
        return
    for completion in group.completions:
        if completion.stop_reason in FAILED:
            continue
        limit = max_new_tokens
        if max_positions is not None and completion.segments:
            limit = max(min(limit, max_positions - len(completion.segments[0].context_ids)), 1)
        completion.penalties["overlong"] = overlong_penalty(completion.num_sampled, limit, algorithm.overlong)


def _shaped_reward(group: Group, index: int) -> float | None:
    """The reward less the penalties."""
    completion = group.completions[index]
    if completion.reward is None:
        return None
    shaped = completion.reward - sum(completion.penalties.values())
    if not isfinite(shaped):
        raise DataError(
            f"group {group.id}, completion {index}: reward {completion.reward} less penalties {completion.penalties} "
            "is not finite; use None for a reward that is not known"
        )
    return shaped
