"""Advantages from the rewards of one group."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from shoal.config.nodes.algorithm import AlgorithmConfig
from shoal.types import all_equal

Rewards = NDArray[np.float64]


def standard(rewards: Rewards, algorithm: AlgorithmConfig) -> Rewards:
    """(R - mean) / (std + eps), GRPO (arXiv 2402.03300). `sample` divides the variance by n - 1, `population` by n."""
    std = rewards.std(ddof=1 if algorithm.std == "sample" else 0)
    return (rewards - rewards.mean()) / (std + algorithm.eps)


def centered(rewards: Rewards, algorithm: AlgorithmConfig) -> Rewards:
    """R - mean, Dr. GRPO (arXiv 2503.20783): no weight on questions that are very easy or very hard."""
    return rewards - rewards.mean()


def leave_one_out(rewards: Rewards, algorithm: AlgorithmConfig) -> Rewards:
    """R minus the mean of the others, RLOO (arXiv 2402.14740); equals n / (n - 1) times `centered`."""
    return (rewards - rewards.mean()) * (len(rewards) / (len(rewards) - 1))


ADVANTAGES: dict[str, Callable[[Rewards, AlgorithmConfig], Rewards]] = {
    "standard": standard,
    "centered": centered,
    "leave_one_out": leave_one_out,
}


def group_advantages(rewards: Sequence[float | None], algorithm: AlgorithmConfig) -> list[float | None]:
    """Advantages of one whole group, in float64 over the rewards that are known.

    None stays None. With fewer than two known rewards there is nothing to compare, and every entry is None.
    Where all known rewards are equal but for rounding (`all_equal`) every advantage is exactly 0.

    Raises:
        ValueError: a reward is NaN or infinite.
    """
    known = np.array([reward for reward in rewards if reward is not None], dtype=np.float64)
    if not np.isfinite(known).all():
        raise ValueError(f"rewards must be finite numbers or None, got {list(rewards)}")
    if len(known) < 2:
        return [None] * len(rewards)
    equal = all_equal(known.tolist())
    values = np.zeros_like(known) if equal else ADVANTAGES[algorithm.advantage](known, algorithm)
    remaining = iter(values.tolist())
    return [None if reward is None else next(remaining) for reward in rewards]
