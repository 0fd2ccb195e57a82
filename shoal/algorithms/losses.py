"""The loss of one micro-batch, summed so that micro-batches and ranks add up to the loss of the optimizer step."""

from __future__ import annotations

from torch import Tensor

from shoal.algorithms.correction import correction_weights
from shoal.algorithms.kl import ESTIMATORS, k3, log_ratio
from shoal.algorithms.surrogates import SURROGATES, token_ratio
from shoal.algorithms.terms import TokenTerms
from shoal.config.nodes.algorithm import AlgorithmConfig


def policy_loss(terms: TokenTerms, algorithm: AlgorithmConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """Surrogate + kl_coef KL(reference) + sampler_kl_coef KL(sampler) - entropy_coef entropy, weighted and summed.

    Returns the scalar to call `backward` on and its detached parts by name (`policy` always; `kl`, `sampler_kl`,
    `entropy` where their coefficient is not 0). Parts contain coefficient and sign: they add up to the loss.
    `terms.weights` is the whole normaliser, so nothing is divided here.

    Raises:
        ValueError: a term is asked for whose log-probs or entropy are missing, or k1 as a loss.
    """
    tokens = {"policy": policy_tokens(terms, algorithm)}
    if algorithm.kl_coef and algorithm.kl_in == "loss":
        tokens["kl"] = algorithm.kl_coef * reference_kl_tokens(terms, algorithm)
    if algorithm.sampler_kl_coef:
        d = log_ratio(terms.logprobs, terms.sampler_logprobs)
        tokens["sampler_kl"] = algorithm.sampler_kl_coef * k3(d, token_ratio(terms))
    if algorithm.entropy_coef:
        if terms.entropy is None:
            raise ValueError("entropy_coef > 0 needs the entropy of each token: TokenTerms.entropy is None")
        tokens["entropy"] = -algorithm.entropy_coef * terms.entropy
    parts = {name: (terms.weights * values).sum() for name, values in tokens.items()}
    loss = sum(parts.values(), start=terms.weights.new_zeros(()))
    return loss, {name: part.detach() for name, part in parts.items()}


def policy_tokens(terms: TokenTerms, algorithm: AlgorithmConfig) -> Tensor:
    """The surrogate of each token times its sampler correction, [N]."""
    losses = SURROGATES[algorithm.surrogate](terms, algorithm).losses
    correction = correction_weights(terms, algorithm)
    return losses if correction is None else losses * correction


def reference_kl_tokens(terms: TokenTerms, algorithm: AlgorithmConfig) -> Tensor:
    """The KL estimate of each token, [N], between the two models at temperature 1."""
    if algorithm.kl_estimator == "k1":
        raise ValueError("k1 has no expected gradient on policy: use k2, k3 or k4 in the loss, or kl_in=reward")
    if terms.ref_logprobs is None:
        raise ValueError("kl_coef > 0 needs the reference's log-probs: TokenTerms.ref_logprobs is None")
    d = log_ratio(terms.unit_logprobs, terms.ref_logprobs)
    return ESTIMATORS[algorithm.kl_estimator](d, token_ratio(terms))


def zero_advantage_is_free(algorithm: AlgorithmConfig) -> bool:
    """True where a completion of zero advantage adds exactly 0 to loss and gradient, so that its passes can be
    skipped: no KL in the loss (to the reference or the sampler) and no entropy term acts on it."""
    kl_in_loss = algorithm.kl_coef > 0 and algorithm.kl_in == "loss"
    return not (kl_in_loss or algorithm.sampler_kl_coef > 0 or algorithm.entropy_coef > 0)
