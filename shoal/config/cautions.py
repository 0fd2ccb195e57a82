"""What works, and seldom does what is meant: said at the start of a run, not refused."""

from __future__ import annotations

from collections.abc import Iterator

from shoal.config.root import ShoalConfig


def cautions(c: ShoalConfig) -> Iterator[str]:
    """One line for each combination to think about."""
    if c.model.train == "lora" and c.model.lora.dropout > 0:
        yield (
            f"model.lora.dropout={c.model.lora.dropout:g}: the training pass drops values at random and the sampler "
            "does not, so their log-probs differ at equal weights. That counts in sampler/* and in the policy ratio "
            "and its clip; set 0 unless the adapter overfits"
        )
    a = c.algorithm
    if a.kl_coef > 0 and a.kl_in == "reward" and a.advantage == "standard":
        yield (
            "algorithm.kl_in=reward with algorithm.advantage=standard: where the rewards of a group are equal, the KL "
            "alone makes its advantages, and dividing by the standard deviation cancels algorithm.kl_coef; set "
            "algorithm.advantage=centered, or algorithm.kl_in=loss"
        )
