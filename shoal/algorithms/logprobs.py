"""Log-probs of target tokens without ever holding [tokens, vocabulary] logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from shoal.algorithms.fused import compiles, fused

# Numbers in the working copies beside a chunk's logits: 16 MiB in float32.
WORKING_COPY = 2**22


@dataclass(frozen=True)
class HeadForm:
    """How a language model's head turns W h + b into logits: times `scale`, then `softcap` tanh(x / softcap)."""

    scale: float = 1.0
    softcap: float | None = None

    def apply(self, raw: Tensor) -> Tensor:
        """Logits from W h + b."""
        logits = raw * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def apply_(self, raw: Tensor) -> Tensor:
        """The same, in place."""
        if self.softcap is not None:
            return raw.mul_(self.scale / self.softcap).tanh_().mul_(self.softcap)
        return raw if self.scale == 1.0 else raw.mul_(self.scale)

    def derivative(self, logits: Tensor) -> Tensor | float:
        """d logits / d raw, as a function of the logits."""
        if self.softcap is None:
            return self.scale
        return (1 - (logits / self.softcap).square_()).mul_(self.scale)


class TokenLogprobs(NamedTuple):
    """[N] each: at the sampling temperature, at temperature 1 (the same tensor where that is it), and the entropy in
    nats at the sampling temperature, where it was asked for."""

    logprobs: Tensor
    unit_logprobs: Tensor
    entropy: Tensor | None

    def take(self, index: Tensor) -> TokenLogprobs:
        """Those at `index` [M], of which some may be equal; their gradients then add up."""
        logprobs = self.logprobs.index_select(0, index)
        same = self.unit_logprobs is self.logprobs
        return TokenLogprobs(
            logprobs,
            logprobs if same else self.unit_logprobs.index_select(0, index),
            None if self.entropy is None else self.entropy.index_select(0, index),
        )


def logprobs_of_logits(
    logits: Tensor, targets: Tensor, temperature: float = 1.0, entropy: bool = False
) -> TokenLogprobs:
    """The same from whole logits [N, V], by autograd: for heads of an unknown form, and to test against."""
    logits = logits.float() if logits.dtype.itemsize == 2 else logits
    # Not log_softmax, which is off by 1e-5 at 150,000 ids on a CPU.
    scaled = logits / temperature
    scaled = scaled - scaled.logsumexp(-1, keepdim=True)
    chosen = scaled.gather(1, targets[:, None])[:, 0]
    unit = chosen
    if temperature != 1.0:
        unit = logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(-1)
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


class _Head:
    """The head's logits of one chunk after another, in one buffer."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, form: HeadForm, chunk: int) -> None:
        self.hidden, self.bias, self.form = hidden, bias, form
        self.weight = weight.to(hidden.dtype)
        self.parts = [slice(start, min(start + chunk, len(hidden))) for start in range(0, len(hidden), chunk)]
        # On a GPU 16-bit products are summed and kept in float32; a CPU rounds them to 16 bits.
        self.wide = hidden.is_cuda and hidden.dtype.itemsize == 2
        self.dtype = torch.float32 if hidden.dtype.itemsize == 2 else hidden.dtype
        self.compiled = compiles(hidden)
        self.buffer = hidden.new_empty((min(chunk, len(hidden)), len(weight)), dtype=self.dtype)

    def logits(self, part: slice) -> Tensor:
        """[n, V] in float32 or float64; overwritten by the next call."""
        rows = self.hidden[part]
        out = self.buffer[: len(rows)]
        if self.wide:
            torch.mm(rows, self.weight.t(), out_dtype=torch.float32, out=out)
        elif self.hidden.dtype == self.dtype:
            torch.mm(rows, self.weight.t(), out=out)
        else:
            out.copy_(rows @ self.weight.t())
        if self.bias is not None:
            out += self.bias
        return self.form.apply_(out)


@fused
def statistics(logits: Tensor, targets: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs of `targets` and entropies, [n] each, at a temperature []; the logits [n, V] stay as they are."""
    scaled = logits / temperature
    shifted = scaled - scaled.amax(-1, keepdim=True)
    powers = shifted.exp()
    total = powers.sum(-1)
    chosen = shifted.gather(1, targets[:, None])[:, 0]
    return chosen - total.log(), total.log() - (powers * shifted).sum(-1) / total


@fused
def gradient(
    logits: Tensor,
    targets: Tensor,
    logprobs: Tensor,
    entropies: Tensor,
    grad: Tensor | None,
    grad_entropy: Tensor | None,
    temperature: Tensor,
    slope: Tensor | float,
    dtype: torch.dtype,
) -> Tensor:
    """The gradient of W h + b in `dtype`, [n, V], by its logits, where the log-prob at temperature 1 has none; see
    `_to_gradient`. `temperature` is []; `slope` the head's own derivative."""
    chosen = logits.gather(1, targets)
    own = torch.zeros_like(chosen) if grad is None else grad / temperature
    logp = logits / temperature - (chosen / temperature - logprobs)
    weight = -own
    if grad_entropy is not None:
        weight = -grad_entropy / temperature * (logp + entropies) - own
    here = torch.arange(logits.shape[1], device=logits.device) == targets
    return ((logp.exp() * weight + torch.where(here, own, 0.0)) * slope).to(dtype)


def _log_softmax(logits: Tensor, targets: Tensor, *, entropy: bool) -> tuple[Tensor, Tensor | None]:
    """Log-probs of `targets` and entropies, [n] each. Shifts the logits [n, V] by a number per row."""
    logits.sub_(logits.amax(-1, keepdim=True))
    sums, moments = logits.new_empty((2, len(logits)))
    for rows in _blocks(logits):
        powers = logits[rows].exp()
        sums[rows] = powers.sum(-1)
        if entropy:
            moments[rows] = powers.mul_(logits[rows]).sum(-1)
        del powers  # or two of them would exist at a time
    chosen = logits.gather(1, targets[:, None])[:, 0]
    # H = log(sum of e^z) - sum of z e^z / sum of e^z
    return chosen - sums.log(), sums.log() - moments / sums if entropy else None


def _blocks(logits: Tensor) -> list[slice]:
    """Runs of rows whose working copy stays small."""
    rows = max(1, WORKING_COPY // logits.shape[1])
    return [slice(start, start + rows) for start in range(0, len(logits), rows)]


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
        head = _Head(hidden, weight, bias, form, chunk)
        logprobs, unit, entropies = hidden.new_zeros((3, len(hidden)), dtype=head.dtype)
        for part in head.parts:
            logits = head.logits(part)
            if head.compiled:
                logprobs[part], entropies[part] = statistics(logits, targets[part], logits.new_full((), temperature))
                if temperature != 1.0:
                    unit[part], _ = statistics(logits, targets[part], logits.new_ones(()))
                continue
            if temperature != 1.0:
                unit[part], _ = _log_softmax(logits, targets[part], entropy=False)
                logits.div_(temperature)
            logprobs[part], found = _log_softmax(logits, targets[part], entropy=entropy)
            if found is not None:
                entropies[part] = found
        ctx.save_for_backward(hidden, weight, bias, targets, logprobs, unit, entropies)
        ctx.set_materialize_grads(False)
        ctx.temperature, ctx.chunk, ctx.form = temperature, chunk, form
        return logprobs, unit, entropies

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor | None, grad_unit: Tensor | None, grad_entropy: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, logprobs, unit, entropies = ctx.saved_tensors
        head = _Head(hidden, weight, bias, ctx.form, ctx.chunk)
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.empty_like(hidden) if need_hidden else None
        # Sums over tokens stay in float32 where the products have 16 bits.
        d_weight = torch.zeros_like(weight, dtype=head.dtype) if need_weight else None
        d_bias = torch.zeros_like(bias, dtype=head.dtype) if need_bias and bias is not None else None
        for part in head.parts:
            logits = head.logits(part)
            slope = ctx.form.derivative(logits)
            grads = [None if one is None else one[part, None] for one in (grad, grad_unit, grad_entropy)]
            values = [one[part, None] for one in (targets, logprobs, unit, entropies)]
            if head.compiled and grads[1] is None:
                known = values[0], values[1], values[3], grads[0], grads[2]
                d_raw = gradient(logits, *known, logits.new_full((), ctx.temperature), slope, hidden.dtype)
            else:
                for rows in _blocks(logits):
                    _to_gradient(
                        logits[rows],
                        *(one[rows] for one in values),
                        *(None if one is None else one[rows] for one in grads),
                        temperature=ctx.temperature,
                    )
                d_raw = logits if isinstance(slope, float) and slope == 1.0 else logits.mul_(slope)
            if d_bias is not None:
                d_bias += d_raw.sum(0, dtype=head.dtype)
            d_raw = d_raw.to(hidden.dtype)
            if d_hidden is not None:
                torch.mm(d_raw, head.weight, out=d_hidden[part])
            if d_weight is not None and d_weight.dtype == d_raw.dtype:
                d_weight.addmm_(d_raw.t(), hidden[part])
            elif d_weight is not None:
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


def _to_gradient(
    logits: Tensor,
    targets: Tensor,
    logprobs: Tensor,
    unit: Tensor,
    entropies: Tensor,
    grad: Tensor | None,
    grad_unit: Tensor | None,
    grad_entropy: Tensor | None,
    *,
    temperature: float,
) -> None:
    """Overwrites logits [n, V] with their gradient; everything else is [n, 1]. `grad`s are those of the log-prob, the
    log-prob at temperature 1 and the entropy.

    A row's log of the sum is its target's logit less its log-prob, so it need not be kept.
    """
    chosen = logits.gather(1, targets)
    at_one = None
    if grad_unit is not None and temperature != 1.0:
        at_one = (logits - (chosen - unit)).exp_().mul_(grad_unit)
    own = torch.zeros_like(chosen) if grad is None else grad / temperature
    if temperature != 1.0:
        logits.div_(temperature)
    logits.sub_(chosen / temperature - logprobs)  # log p from here on
    if grad_entropy is None:
        logits.exp_().mul_(-own)
    else:
        powers = logits.exp()
        logits.add_(entropies).mul_(-grad_entropy / temperature).sub_(own).mul_(powers)
    if at_one is not None and grad_unit is not None:
        logits.sub_(at_one)
        own = own + grad_unit
    logits.scatter_add_(1, targets, own)
