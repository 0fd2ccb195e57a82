"""The flat per-token tensors that losses are computed from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class TokenTerms:
    """N trained tokens of C whole completions; every tensor is [N] unless it says otherwise.

    `logprobs` l, with gradient; `old_logprobs` l_old; `sampler_logprobs` l_gen: all at the sampling temperature.
    `unit_logprobs` and `ref_logprobs` are at temperature 1, the former with gradient (the very tensor `logprobs`
    where the temperature is 1). `entropy` has a gradient only where it is in the loss. `completion` int64 numbers the
    completions 0..C-1. `weights` are the normaliser: a term of the loss is sum(weights x token values), so that
    micro-batches and ranks simply add up. Tokens of one completion are never split over micro-batches.
    """

    logprobs: Tensor
    old_logprobs: Tensor
    sampler_logprobs: Tensor
    advantages: Tensor
    weights: Tensor
    completion: Tensor
    num_completions: int
    unit_logprobs: Tensor
    ref_logprobs: Tensor | None = None
    entropy: Tensor | None = None
