"""From the verifiers' scores to the reward: scale, format, gate, replacement values and length penalties."""

from __future__ import annotations

from collections.abc import Mapping

from shoal.config.nodes.data import RewardConfig
from shoal.types import FORMAT_PART, Completion, StopReason

LENGTH_PENALTY = "length"


def shaped_reward(completion: Completion, weights: Mapping[str, float], reward: RewardConfig) -> float | None:
    """The reward of a completion whose `reward_parts` are set; None where a part that it needs is missing.

    scale x (weighted sum of the verifiers' parts), which the gate turns to 0 without the format; plus `format.scale`
    times the format's part. Then 0 where only good outputs are rewarded and a tool's was not, and `non_stop` in place
    of everything for a completion that was cut off. The length penalty is no part of it: see `length_penalty`.
    """
    if reward.non_stop is not None and completion.stop_reason is not StopReason.STOP:
        return reward.non_stop
    verified = verified_sum(completion, weights, reward)
    has_format = completion.reward_parts.get(FORMAT_PART) if reward.format.pattern else 0.0
    if verified is None or has_format is None:
        return None
    total = reward.scale * verified if has_format or not reward.format.gate else 0.0
    total += reward.format.scale * has_format
    if reward.only_good_outputs and not good_outputs(completion):
        return 0.0
    return total


def verified_sum(completion: Completion, weights: Mapping[str, float], reward: RewardConfig) -> float | None:
    """The weighted sum of the verifiers' parts; None where one is missing."""
    total = 0.0
    for name, part in completion.reward_parts.items():
        if name == FORMAT_PART and reward.format.pattern:
            continue
        if part is None:
            return None
        total += weights.get(name, 1.0) * part
    return total


def good_outputs(completion: Completion) -> bool:
    """Whether its tools were called, none failed or timed out, and one gave output.

    `info["tools"]` has one entry per call: `output`, and `error` and `timed_out` where there was one.
    """
    calls = completion.info.get("tools", [])
    failed = any(call.get("error") or call.get("timed_out") for call in calls)
    return not failed and any(call.get("output") for call in calls)


def length_penalty(completion: Completion, source: str, reward: RewardConfig) -> float:
    """`coef` for each sampled token above the one limit or below the other."""
    limits = reward.length
    if not limits.coef or (limits.sources and source not in limits.sources):
        return 0.0
    length = completion.num_sampled
    too_many = max(0, length - limits.above) if limits.above is not None else 0
    return limits.coef * (too_many + max(0, limits.below - length))
