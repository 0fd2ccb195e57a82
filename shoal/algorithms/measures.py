"""Diagnostics of the loss, gathered over micro-batches without waiting for the device."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from shoal.algorithms.correction import correction_weights, mismatch_ratio
from shoal.algorithms.kl import ESTIMATORS, k1, k3, log_ratio
from shoal.algorithms.precision import widest_float
from shoal.algorithms.surrogates import SURROGATES, token_ratio
from shoal.algorithms.terms import TokenTerms
from shoal.config.nodes.algorithm import AlgorithmConfig

LOSSES = ("policy", "kl", "sampler_kl", "entropy")
SUMS = (
    *(f"loss_{name}" for name in LOSSES),
    "tokens",
    "clipped_low",
    "clipped_high",
    "ratio",
    "entropy_tokens",
    "entropy",
    "ref_tokens",
    *(f"ref_{name}" for name in ESTIMATORS),
    "gap",
    "sampler_k1",
    "sampler_k3",
    "rho",
    "rho_squared",
    "corrected",
    "measured",
    "completions",
)
COUNTED = SUMS.index("measured")
"""The sums before this one are over trained tokens; the last two count what went through the model."""
MAXIMA = ("ratio_max", "minus_ratio_min", "gap_max")


class Measures:
    """Sums over trained tokens. Of completions whose passes were skipped a share is added, whose tokens stand for all.

    Everything is one tensor, `state`: sums, then maxima, in the order of SUMS and MAXIMA. States of several ranks
    are joined with `merge`. Only `metrics` waits for the device.
    """

    def __init__(self, optimizer_steps: int = 1) -> None:
        """`optimizer_steps`: how many the micro-batches to come belong to; the losses are averaged over them."""
        self.optimizer_steps = optimizer_steps
        self._sums: Tensor | None = None
        self._maxima: Tensor | None = None

    @torch.no_grad()
    def add(
        self, terms: TokenTerms, parts: Mapping[str, Tensor], algorithm: AlgorithmConfig, stands_for: float = 1.0
    ) -> None:
        """Counts one micro-batch. `parts` are those that `policy_loss` gave for it; each of its tokens stands for
        `stands_for` trained tokens."""
        if not len(terms.logprobs):
            return
        surrogate = SURROGATES[algorithm.surrogate](terms, algorithm)
        # With the sampler's log-probs as l_old the mismatch would be 0 by definition.
        learner = terms.logprobs if algorithm.old_logprobs == "sampler" else terms.old_logprobs
        logs = log_ratio(learner, terms.sampler_logprobs)
        gap, rho = logs.abs(), logs.exp()
        zero = terms.weights.new_zeros(())
        values = {
            **{f"loss_{name}": parts.get(name, zero) for name in LOSSES},
            "tokens": zero + len(terms.logprobs),
            "measured": zero + len(terms.logprobs),
            "completions": zero + terms.num_completions,
            "clipped_low": surrogate.low.sum(),
            "clipped_high": surrogate.high.sum(),
            "ratio": surrogate.ratio.sum(),
            "gap": gap.sum(),
            "sampler_k1": k1(-logs, rho).sum(),
            "sampler_k3": k3(-logs, rho).sum(),
            "rho": rho.sum(),
            "rho_squared": rho.square().sum(),
        }
        if terms.entropy is not None:
            values["entropy_tokens"] = values["tokens"]
            values["entropy"] = terms.entropy.sum()
        if terms.ref_logprobs is not None:
            values["ref_tokens"] = values["tokens"]
            d, ratio = log_ratio(terms.unit_logprobs, terms.ref_logprobs), token_ratio(terms)
            values.update({f"ref_{name}": estimator(d, ratio).sum() for name, estimator in ESTIMATORS.items()})
        if (correction := correction_weights(terms, algorithm)) is not None:
            values["corrected"] = (correction != mismatch_ratio(terms, algorithm)).sum()
        # Counts beyond 2^24 need more than float32, which is all that MPS has.
        precision = widest_float(zero.device)
        sums = torch.stack([values.get(name, zero).to(precision) for name in SUMS])
        if stands_for != 1.0:
            sums[:COUNTED] *= stands_for
        maxima = torch.stack([surrogate.ratio.max(), -surrogate.ratio.min(), gap.max()]).to(precision)
        self._accumulate(sums, maxima)

    def _accumulate(self, sums: Tensor, maxima: Tensor) -> None:
        if self._sums is None or self._maxima is None:
            self._sums, self._maxima = sums, maxima
        else:
            self._sums, self._maxima = self._sums + sums, torch.maximum(self._maxima, maxima)

    def mark(self) -> tuple[Tensor | None, Tensor | None]:
        """What has been counted so far, for `back_to`."""
        return self._sums, self._maxima

    def back_to(self, mark: tuple[Tensor | None, Tensor | None]) -> None:
        """Forgets what was counted since."""
        self._sums, self._maxima = mark

    def state(self) -> Tensor:
        """[len(SUMS) + len(MAXIMA)], for `merge` on another rank. A rank without tokens gives zeros and -inf."""
        if self._sums is None or self._maxima is None:
            return torch.cat([torch.zeros(len(SUMS)), torch.full((len(MAXIMA),), -torch.inf)]).double()
        return torch.cat([self._sums, self._maxima])

    def merge(self, state: Tensor) -> None:
        """Adds what another rank counted of the same optimizer steps."""
        self._accumulate(*state.split([len(SUMS), len(MAXIMA)]))

    def metrics(self) -> dict[str, float]:
        """Metrics by name; empty when nothing was added.

        "Trained tokens" are all of the batch's, once per epoch. Those of completions that were skipped for their zero
        advantage are estimated from a share of them, scored once with the weights that the batch began with: they
        add exactly 0 to losses and clip fractions.

        - `loss/total`, `loss/policy`, `loss/kl`, `loss/sampler_kl`, `loss/entropy`: per optimizer step, coefficient
          and sign included, each with the normaliser of `algorithm.aggregation`.
        - `policy/clip_fraction`, `_low`, `_high`: tokens whose loss was changed by the clip / trained tokens.
        - `policy/ratio_mean`, `_min`, `_max`: the surrogate's ratio (of the sequence for gspo) over trained tokens.
        - `policy/entropy`: nats, mean over the trained tokens whose entropy was computed; absent without any.
        - `kl_ref/k1` to `k4`: nats, mean over the trained tokens with a reference; absent without any.
        - `sampler/abs_difference`, `_max`: |l_old - l_gen| in nats, mean and largest over trained tokens. Log-ratios
          are clamped to 40 here and below. Under old_logprobs=sampler l stands for l_old in all of `sampler/`.
        - `sampler/kl_k1`, `sampler/kl_k3`: KL from the sampler to the learner, d = l_gen - l_old, nats, mean over
          trained tokens (the sampler drew them, so both are unbiased).
        - `sampler/ess`: (sum rho)^2 / (n sum rho^2), n trained tokens, rho = exp(l_old - l_gen) per token; 1 is none
          lost.
        - `sampler/corrected_fraction`: tokens whose rho was capped or masked / trained tokens.
        - `train/tokens_measured`, `train/completions_measured`: counts of what went through the model, over all passes
          and optimizer steps.
        """
        if self._sums is None:
            return {}
        state = self.state().tolist()
        total = dict(zip(SUMS, state, strict=False))
        most = dict(zip(MAXIMA, state[len(SUMS) :], strict=True))
        tokens = total["tokens"]
        losses = {f"loss/{name}": total[f"loss_{name}"] / self.optimizer_steps for name in LOSSES}
        metrics = {
            "loss/total": sum(losses.values()),
            **losses,
            "policy/clip_fraction": (total["clipped_low"] + total["clipped_high"]) / tokens,
            "policy/clip_fraction_low": total["clipped_low"] / tokens,
            "policy/clip_fraction_high": total["clipped_high"] / tokens,
            "policy/ratio_mean": total["ratio"] / tokens,
            "policy/ratio_min": -most["minus_ratio_min"],
            "policy/ratio_max": most["ratio_max"],
            "sampler/abs_difference": total["gap"] / tokens,
            "sampler/abs_difference_max": most["gap_max"],
            "sampler/kl_k1": total["sampler_k1"] / tokens,
            "sampler/kl_k3": total["sampler_k3"] / tokens,
            "sampler/ess": total["rho"] ** 2 / (tokens * total["rho_squared"]),
            "sampler/corrected_fraction": total["corrected"] / tokens,
            "train/tokens_measured": total["measured"],
            "train/completions_measured": total["completions"],
        }
        if total["entropy_tokens"]:
            metrics["policy/entropy"] = total["entropy"] / total["entropy_tokens"]
        if total["ref_tokens"]:
            metrics.update({f"kl_ref/{name}": total[f"ref_{name}"] / total["ref_tokens"] for name in ESTIMATORS})
        return metrics
