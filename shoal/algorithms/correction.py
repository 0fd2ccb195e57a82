"""Corrections for the mismatch between the sampler's and the learner's log-probs of the same weights.

rho = exp(l_old - l_gen), per token or per completion, is an importance weight on the surrogate (never on the KL). It
is capped (`truncate`: bias for a bounded variance) or set to 0 outside a band (`mask`: drops what cannot be trusted).
Masked tokens still count in the normaliser, so that masking does not raise the weight of the others.
"""

from __future__ import annotations

from torch import Tensor, where

from shoal.algorithms.per_completion import completion_mean, completion_sum
from shoal.algorithms.terms import TokenTerms
from shoal.config.nodes.algorithm import AlgorithmConfig


def mismatch_ratio(terms: TokenTerms, algorithm: AlgorithmConfig) -> Tensor:
    """rho of each token, or of its whole completion for the sequence corrections, [N] without gradient.

    A completion's rho is the product of its trained tokens' ratios, or their geometric mean.
    """
    logs = (terms.old_logprobs - terms.sampler_logprobs).detach()
    if not algorithm.correction.startswith("sequence"):
        return logs.exp()
    if algorithm.correction_average == "product":
        return completion_sum(logs, terms).exp()
    return completion_mean(logs, terms).exp()


def correction_weights(terms: TokenTerms, algorithm: AlgorithmConfig) -> Tensor | None:
    """What the surrogate of each token is multiplied with, [N] without gradient; None for `none`."""
    if algorithm.correction == "none":
        return None
    rho = mismatch_ratio(terms, algorithm)
    if algorithm.correction.endswith("truncate"):
        return rho.clamp(max=algorithm.correction_high)
    inside = (rho >= algorithm.correction_low) & (rho <= algorithm.correction_high)
    return where(inside, rho, rho.new_zeros(()))
