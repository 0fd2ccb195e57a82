"""Metrics of a step's groups, and the sentence for a step with nothing to learn from."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np

from shoal.types import FORMAT_PART, Completion, Group, StopReason

TRAINED = (
    *("reward/mean", "reward/std", "length/mean", "stop/length", "groups/all_right", "groups/all_wrong"),
    *("groups/zero_variance", "count/groups", "count/completions", "count/sampled_tokens"),
)
"""Metrics of all sampled groups that are measured of the trained ones too, where those are a selection."""


def step_metrics(
    trained: Sequence[Group], passed_over: Sequence[Group] | None, version: int | None = None
) -> dict[str, float]:
    """`group_metrics` over everything that was sampled for a step, trained on or not.

    `passed_over` are the sampled groups that the step does not train on; None where the source never chooses among
    its groups. Where it does, the metrics of `TRAINED` are given once more as `trained/<name>`, over the trained groups
    alone, so that their names are the same in every step of the run.
    """
    if passed_over is None:
        return group_metrics(trained, version)
    of_trained = group_metrics(trained, version)
    return group_metrics([*trained, *passed_over], version) | {
        f"trained/{name}": of_trained[name] for name in TRAINED if name in of_trained
    }


def is_right(completion: Completion) -> bool:
    """Right: every part of the reward but its form is known and at its full score of 1; partial credit is not right.

    A completion without such parts (a foreign environment's) is right where its reward is at least 1.
    """
    return parts_are_right(completion.reward_parts, completion.reward)


def parts_are_right(reward_parts: Mapping[str, float | None], reward: float | None) -> bool:
    """`is_right`, from a completion's reward and its parts."""
    parts = [part for name, part in reward_parts.items() if name != FORMAT_PART]
    if not parts:
        return reward is not None and reward >= 1
    return all(part is not None and part >= 1 for part in parts)


def group_metrics(groups: Sequence[Group], version: int | None = None) -> dict[str, float]:
    """Metrics by name. A metric whose denominator is 0 is left out: there is no mean of nothing.

    Over completions with a known reward: `reward/mean`, `/std` (population), `/min`, `/max`.
    Over all completions: `reward/missing` (share without a reward), `length/mean`, `/min`, `/max` (sampled tokens,
    trained or not), `stop/<reason>` (share; each reason always there).
    Over the right and over the other completions with a known reward: `length/right`, `length/wrong`.
    Over completions with that part known: `reward_part/<part>/mean`, `reward_part/<part>/one` (share of exactly 1);
    over completions that have the part, known or not: `reward_part/<part>/missing` (share).
    Over completions with that penalty: `penalty/<name>`, the mean amount taken off.
    Over scored groups (at least one known reward): `groups/all_right` (every completion with a known reward is right),
    `groups/all_wrong` (no known reward is above 0), `groups/zero_variance` (all known rewards are equal); shares.
    Over completions with an advantage: `advantage/abs_mean`, `/min`, `/max`.
    Over completions of a known version, where `version` (that of the weights about to be trained) is given:
    `staleness/mean`, `/max`: `version` less the oldest version that a token was sampled with.
    Over the source's completions with a known reward, where there are several sources: `source/<source>/reward`.
    Plain numbers: `count/groups`, `count/completions`, `count/sampled_tokens`.
    """
    completions = [completion for group in groups for completion in group.completions]
    metrics: dict[str, float] = {
        "count/groups": len(groups),
        "count/completions": len(completions),
        "count/sampled_tokens": sum(completion.num_sampled for completion in completions),
    }
    if not completions:
        return metrics
    metrics |= _reward_metrics(completions) | _part_metrics(completions) | _group_shares(groups)
    metrics |= _length_metrics(completions)
    advantages = [completion.advantage for completion in completions if completion.advantage is not None]
    if advantages:
        metrics["advantage/abs_mean"] = fmean(map(abs, advantages))
        metrics["advantage/min"] = min(advantages)
        metrics["advantage/max"] = max(advantages)
    stops = Counter(completion.stop_reason for completion in completions)
    metrics |= {f"stop/{reason.value}": stops[reason] / len(completions) for reason in StopReason}
    if version is not None:
        metrics |= _staleness(completions, version)
    return metrics | _source_rewards(groups)


def describe(metrics: Mapping[str, float]) -> str | None:
    """A sentence for a step in which no group can teach by its rewards, from the metrics of `group_metrics`.

    None where rewards differ within some group, or nothing was scored. Newcomers take a loss of 0 for a defect.
    """
    if metrics.get("groups/zero_variance") != 1:
        return None
    right, wrong = metrics["groups/all_right"], metrics["groups/all_wrong"]
    if right == 1:
        what = "every group was solved"
    elif wrong == 1:
        what = "every group failed"
    elif right + wrong == 1:
        what = f"{right:.0%} of the groups were solved by all their completions and {wrong:.0%} by none"
    else:
        what = "within every group all rewards are equal"
    if metrics.get("advantage/abs_mean", 0) > 0:
        return f"{what}: the advantages of this step come from penalties or are made up"
    return f"{what}: nothing to learn from this step's rewards (a policy loss of 0 is right)"


def _reward_metrics(completions: Sequence[Completion]) -> dict[str, float]:
    known = [completion.reward for completion in completions if completion.reward is not None]
    metrics = {"reward/missing": 1 - len(known) / len(completions)}
    if known:
        metrics["reward/mean"] = fmean(known)
        metrics["reward/std"] = float(np.std(known))
        metrics["reward/min"] = min(known)
        metrics["reward/max"] = max(known)
    return metrics


def _part_metrics(completions: Sequence[Completion]) -> dict[str, float]:
    parts: dict[str, list[float | None]] = defaultdict(list)
    penalties: dict[str, list[float]] = defaultdict(list)
    for completion in completions:
        for name, part in completion.reward_parts.items():
            parts[name].append(part)
        for name, penalty in completion.penalties.items():
            penalties[name].append(penalty)
    metrics: dict[str, float] = {}
    for name, values in sorted(parts.items()):
        known = [value for value in values if value is not None]
        metrics[f"reward_part/{name}/missing"] = 1 - len(known) / len(values)
        if known:
            metrics[f"reward_part/{name}/mean"] = fmean(known)
            metrics[f"reward_part/{name}/one"] = sum(value == 1 for value in known) / len(known)
    return metrics | {f"penalty/{name}": fmean(values) for name, values in sorted(penalties.items())}


def _group_shares(groups: Sequence[Group]) -> dict[str, float]:
    scored = [
        [completion for completion in group.completions if completion.reward is not None]
        for group in groups
        if group.known_rewards
    ]
    if not scored:
        return {}
    all_right = sum(all(map(is_right, completions)) for completions in scored)
    all_wrong = sum(all((completion.reward or 0) <= 0 for completion in completions) for completions in scored)
    zero_variance = sum(group.zero_variance for group in groups if group.known_rewards)
    return {
        "groups/all_right": all_right / len(scored),
        "groups/all_wrong": all_wrong / len(scored),
        "groups/zero_variance": zero_variance / len(scored),
    }


def _length_metrics(completions: Sequence[Completion]) -> dict[str, float]:
    lengths = [completion.num_sampled for completion in completions]
    scored = [completion for completion in completions if completion.reward is not None]
    right = [completion.num_sampled for completion in scored if is_right(completion)]
    wrong = [completion.num_sampled for completion in scored if not is_right(completion)]
    metrics: dict[str, float] = {
        "length/mean": fmean(lengths),
        "length/min": min(lengths),
        "length/max": max(lengths),
    }
    if right:
        metrics["length/right"] = fmean(right)
    if wrong:
        metrics["length/wrong"] = fmean(wrong)
    return metrics


def _staleness(completions: Sequence[Completion], version: int) -> dict[str, float]:
    staleness = [version - completion.first_version for completion in completions if completion.first_version >= 0]
    return {"staleness/mean": fmean(staleness), "staleness/max": max(staleness)} if staleness else {}


def _source_rewards(groups: Sequence[Group]) -> dict[str, float]:
    rewards: dict[str, list[float]] = defaultdict(list)
    for group in groups:
        rewards[group.prompt.source if group.prompt else "unknown"] += group.known_rewards
    if len(rewards) < 2:
        return {}
    return {f"source/{source}/reward": fmean(known) for source, known in sorted(rewards.items()) if known}
