"""Per-token estimators of the KL divergence from the policy to another model.

d is the clamped log-ratio log(policy / other) of the sampled token, w the policy ratio exp(l - l_old). Under samples
of the policy, k1 and k3 have the KL as their mean; k2 is biased and small in variance (Schulman, "Approximating KL
divergence", 2020). What matters for a loss is the gradient: that of k1 has mean 0 on policy, so it is refused there;
k4 = w d repairs it, because its gradient through w is d times that of l, whose mean is the gradient of the KL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch import expm1 as torch_expm1

LIMIT = 40.0
"""Log-ratios are clamped to +-40, so that exp(40) = 2e17 stays finite in every sum."""


def log_ratio(logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    """d = clamp(l - l_other, -40, 40), [N]."""
    return (logprobs - other_logprobs).clamp(-LIMIT, LIMIT)


def k1(d: Tensor, ratio: Tensor) -> Tensor:
    """d: unbiased, large variance, can be negative."""
    return d


def k2(d: Tensor, ratio: Tensor) -> Tensor:
    """d^2 / 2: biased; its gradient on policy is that of the KL."""
    return d.square() / 2


def k3(d: Tensor, ratio: Tensor) -> Tensor:
    """exp(-d) - 1 + d: unbiased, never negative."""
    return torch_expm1(-d) + d


def k4(d: Tensor, ratio: Tensor) -> Tensor:
    """w d: k1 with the policy ratio, differentiable through both; off policy it stays unbiased."""
    return ratio * d


ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3, "k4": k4}


def reward_kl(logprobs: Sequence[float], ref_logprobs: Sequence[float], mask: Sequence[bool]) -> float:
    """The sum of k1 over one segment's trained tokens, in nats: what kl_in=reward takes off, times kl_coef.

    Both log-probs are at temperature 1 and of the weights before the update.
    """
    pairs = zip(logprobs, ref_logprobs, mask, strict=True)
    return sum(max(-LIMIT, min(LIMIT, own - reference)) for own, reference, trained in pairs if trained)
