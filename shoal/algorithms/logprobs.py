"""Log-probs of target tokens without ever holding [tokens, vocabulary] logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class HeadForm:
    """How a language model's head turns W h + b into logits: times `scale`, then `softcap` tanh(x / softcap)."""

    scale: float = 1.0
    softcap: float | None = None

    def apply(self, raw: Tensor) -> Tensor:
        logits = raw * self.scale if self.scale != 1.0 else raw
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def derivative(self, logits: Tensor) -> Tensor | float:
        """d logits / d raw, as a function of the logits."""
        if self.softcap is None:
            return self.scale
        return (1 - (logits / self.softcap).square()) * self.scale


class TokenLogprobs(NamedTuple):
    """[N] each: at the sampling temperature, at temperature 1 (the same tensor where that is it), and the entropy in
    nats at the sampling temperature, where it was asked for."""

    logprobs: Tensor
    unit_logprobs: Tensor
    entropy: Tensor | None


def logprobs_of_logits(
    logits: Tensor, targets: Tensor, temperature: float = 1.0, entropy: bool = False
) -> TokenLogprobs:
    """The same from whole logits [N, V], by autograd: for heads of an unknown form, and to test against."""
    logits = logits.float() if logits.dtype.itemsize == 2 else logits
    scaled = (logits / temperature).log_softmax(-1)
    chosen = scaled.gather(1, targets[:, None])[:, 0]
    unit = chosen if temperature == 1.0 else logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    return TokenLogprobs(chosen, unit, -(scaled.exp() * scaled).sum(-1) if entropy else None)


def chunked_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int = 2048,
    form: HeadForm | None = None,
    entropy: bool = False,
) -> TokenLogprobs:
    """Log-probs of `targets` [N] under the head (`weight` [V, H], `bias` [V]) at `hidden` [N, H].

    Logits exist for `chunk` tokens at a time, in float32 (float64 for float64 input), in the forward pass and again in
    the backward pass, which recomputes them. Matrix products run in the dtype of `hidden`. The gradient reaches
    `hidden`, `weight` and `bias`. With d = p - onehot and l = log p, the gradient of a log-prob is -d / T and that of
    the entropy H is -p (l + H) / T.
    """
    form = form or HeadForm()
    logprobs, unit, entropies = _Chunked.apply(hidden, weight, bias, targets, temperature, chunk, form, entropy)
    return TokenLogprobs(logprobs, unit if temperature != 1.0 else logprobs, entropies if entropy else None)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, form: HeadForm) -> Tensor:
    """[n, V], float32 or float64."""
    if hidden.is_cuda and hidden.dtype.itemsize == 2:
        raw = torch.mm(hidden, weight.to(hidden.dtype).t(), out_dtype=torch.float32)
    else:
        raw = hidden @ weight.to(hidden.dtype).t()
        raw = raw.float() if raw.dtype.itemsize == 2 else raw
    return form.apply(raw if bias is None else raw + bias)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk: int,
        form: HeadForm,
        entropy: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = torch.float32 if hidden.dtype.itemsize == 2 else hidden.dtype
        logprobs, log_sums, unit, unit_sums, entropies = hidden.new_empty((5, len(hidden)), dtype=dtype)
        for part in _parts(len(hidden), chunk):
            logits = _logits(hidden[part], weight, bias, form)
            chosen = logits.gather(1, targets[part, None])[:, 0]
            if temperature != 1.0:
                unit_sums[part] = logits.logsumexp(-1)
                unit[part] = chosen - unit_sums[part]
                logits = logits / temperature
                chosen = chosen / temperature
            log_sums[part] = logits.logsumexp(-1)
            logprobs[part] = chosen - log_sums[part]
            if entropy:
                logits = logits.sub_(log_sums[part, None])
                entropies[part] = -(logits.exp() * logits).sum(-1)
        ctx.save_for_backward(hidden, weight, bias, targets, log_sums, unit_sums, entropies)
        ctx.temperature, ctx.chunk, ctx.form, ctx.entropy = temperature, chunk, form, entropy
        return logprobs, unit, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_unit: Tensor, grad_entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, log_sums, unit_sums, entropies = ctx.saved_tensors
        temperature, form = ctx.temperature, ctx.form
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.empty_like(hidden) if need_hidden else None
        # Sums over tokens stay in float32 where the products have 16 bits.
        d_weight = torch.zeros_like(weight, dtype=log_sums.dtype) if need_weight else None
        d_bias = torch.zeros_like(bias, dtype=log_sums.dtype) if need_bias and bias is not None else None
        for part in _parts(len(hidden), ctx.chunk):
            logits = _logits(hidden[part], weight, bias, form)
            slope = form.derivative(logits)
            scaled = (
                logits / temperature - log_sums[part, None] if temperature != 1.0 else logits - log_sums[part, None]
            )
            own = grad[part, None]
            if ctx.entropy:
                logp = scaled
                factor = own + grad_entropy[part, None] * (logp + entropies[part, None])
                d_logits = (logp.exp() * factor).neg_().div_(temperature)
            else:
                d_logits = scaled.exp_().mul_(own).neg_().div_(temperature)
            chosen = own / temperature
            if temperature != 1.0:
                d_logits -= (logits - unit_sums[part, None]).exp_().mul_(grad_unit[part, None])
                chosen = chosen + grad_unit[part, None]
            d_logits.scatter_add_(1, targets[part, None], chosen)
            d_raw = d_logits if isinstance(slope, float) and slope == 1.0 else d_logits * slope
            if d_bias is not None:
                d_bias += d_raw.sum(0)
            d_raw = d_raw.to(hidden.dtype)
            if d_hidden is not None:
                torch.mm(d_raw, weight.to(hidden.dtype), out=d_hidden[part])
            if d_weight is not None:
                d_weight += d_raw.t() @ hidden[part]
        return (
            d_hidden,
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None else d_bias.to(bias.dtype),
            None,
            None,
            None,
            None,
            None,
        )


def _parts(count: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, count)) for start in range(0, count, chunk)]
