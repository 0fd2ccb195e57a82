"""Policy-gradient surrogates: one function each, registered by name.

A surrogate gives the loss of each trained token before aggregation, and what it did to reach it. A new one is a
function of the same form and a line in SURROGATES.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, maximum, zeros_like

from shoal.algorithms.per_completion import completion_mean
from shoal.algorithms.terms import TokenTerms
from shoal.config.nodes.algorithm import AlgorithmConfig


@dataclass
class SurrogateTokens:
    """`losses` with gradient; `ratio` the policy ratio that was used; `low` and `high` mark tokens whose ratio was
    clipped at that edge in a way that changed the loss (never where the advantage is 0). All [N]."""

    losses: Tensor
    ratio: Tensor
    low: Tensor
    high: Tensor


Surrogate = Callable[[TokenTerms, AlgorithmConfig], SurrogateTokens]


def token_ratio(terms: TokenTerms) -> Tensor:
    """w = exp(l - l_old), [N], with gradient."""
    return (terms.logprobs - terms.old_logprobs).exp()


def sequence_ratio(terms: TokenTerms) -> Tensor:
    """exp of the mean of l - l_old over each completion's trained tokens, [N] (the same for all of its tokens)."""
    return completion_mean(terms.logprobs - terms.old_logprobs, terms).exp()


def _clipped(ratio: Tensor, terms: TokenTerms, algorithm: AlgorithmConfig) -> SurrogateTokens:
    # For A < 0 the maximum takes the larger of two positive numbers, so a ratio far above 1 + clip_high still counts
    # in full: A = -1, w = 3 gives 3 and pushes the token down.
    floor, ceiling = 1 - algorithm.clip_low, 1 + algorithm.clip_high
    losses = maximum(-terms.advantages * ratio, -terms.advantages * ratio.clamp(floor, ceiling))
    low = (ratio < floor) & (terms.advantages < 0)
    high = (ratio > ceiling) & (terms.advantages > 0)
    return SurrogateTokens(losses, ratio, low, high)


def clip(terms: TokenTerms, algorithm: AlgorithmConfig) -> SurrogateTokens:
    """max(-A w, -A clip(w, 1 - clip_low, 1 + clip_high)), PPO (arXiv 1707.06347) on tokens."""
    return _clipped(token_ratio(terms), terms, algorithm)


def gspo(terms: TokenTerms, algorithm: AlgorithmConfig) -> SurrogateTokens:
    """The clip surrogate on the sequence ratio (GSPO, arXiv 2507.18071), repeated for each token.

    The weights of a completion's tokens then add up to its weight, and its gradient to s A times the mean gradient.
    """
    return _clipped(sequence_ratio(terms), terms, algorithm)


def cispo(terms: TokenTerms, algorithm: AlgorithmConfig) -> SurrogateTokens:
    """-sg(min(w, 1 + clip_high)) A l, CISPO (MiniMax-M1, arXiv 2506.13585).

    The capped ratio is a constant weight: tokens beyond the cap keep the gradient of their log-prob.
    """
    ratio = token_ratio(terms).detach()
    ceiling = 1 + algorithm.clip_high
    losses = -ratio.clamp(max=ceiling) * terms.advantages * terms.logprobs
    high = (ratio > ceiling) & (terms.advantages != 0)
    return SurrogateTokens(losses, ratio, zeros_like(high), high)


SURROGATES: dict[str, Surrogate] = {"clip": clip, "cispo": cispo, "gspo": gspo}
