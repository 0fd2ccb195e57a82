"""16-bit matrix products over float32 weights."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from shoal.runtime import Runtime

ROWS = 64
"""Products of more rows have a multiple of this many, the last of them 0: oneDNN makes a kernel for each number of rows
that is new to it, which takes ten times as long as the product itself in a small model."""
EXACT = 1024
"""Up to so many tokens a sum over them with 0 at its end is the same to the bit: oneDNN adds more up in parts."""


def forward_context(runtime: Runtime) -> AbstractContextManager[Any]:
    """The context that forward passes run in: autocast on a GPU, nothing on a CPU, whose linear layers are
    replaced instead (see `use_mixed_linears`)."""
    if runtime.compute_dtype is None or runtime.device.type == "cpu":
        return nullcontext()
    return torch.autocast(runtime.device.type, dtype=runtime.compute_dtype)


def use_mixed_linears(model: nn.Module, runtime: Runtime) -> None:
    """On a CPU, makes every linear layer but the head multiply in the compute dtype.

    Autocast would also run attention in 16 bits, whose backward pass is ten times slower on a CPU. Attention, norms,
    the residual stream and the head stay in float32: logits near 16 rounded to bfloat16 are off by up to 0.06.
    """
    if runtime.compute_dtype is None or runtime.device.type != "cpu":
        return
    head = model.get_output_embeddings()  # type: ignore[operator]
    casts = SharedCast(runtime.compute_dtype)
    for module in model.modules():
        if type(module) is nn.Linear and module is not head:
            module.__class__ = MixedLinear
            setattr(module, "casts", casts)  # noqa: B010 - mypy sees a plain Linear


def cast_rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[..., F] to [tokens, F] in `dtype`; where these are more than ROWS, followed by rows of 0 up to a multiple."""
    flat = x.reshape(-1, x.shape[-1])
    missing = -len(flat) % ROWS
    if not missing or len(flat) < ROWS:
        return flat.to(dtype)
    rows = flat.new_empty((len(flat) + missing, flat.shape[1]), dtype=dtype)
    rows[: len(flat)] = flat
    rows[len(flat) :] = 0
    return rows


class SharedCast:
    """Casts inputs to `dtype`, and keeps the last: queries, keys and values, or gate and up, have the same input."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._last: tuple[ReferenceType[Tensor], int, Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """[..., F] to rows [tokens or more, F] in `dtype`, without gradient; see `cast_rows`."""
        if self._last is not None:
            of, version, cast = self._last
            if of() is x and version == x._version:
                return cast
        cast = cast_rows(x.detach(), self.dtype)
        self._last = (ref(x), x._version, cast)
        return cast

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedCast:
        return memo.setdefault(id(self), SharedCast(self.dtype))


class MixedLinear(nn.Linear):
    """A linear layer with float32 weight, input and output whose products run in the dtype of `casts`."""

    casts: SharedCast
    _copy: tuple[tuple[int, int], Tensor] | None = None

    def shadow(self) -> Tensor:
        """The weight in the compute dtype, cast again after each write.

        A write is seen by the tensor's version counter; one through `.data` would not be, so nothing here does that.
        """
        key = (self.weight.data_ptr(), self.weight._version)
        if self._copy is None or self._copy[0] != key:
            with torch.inference_mode(False), torch.no_grad():
                self._copy = (key, self.weight.detach().to(self.casts.dtype))
        return self._copy[1]

    def forward(self, x: Tensor) -> Tensor:
        return _MixedProduct.apply(x, self.casts(x), self.weight, self.bias, self.shadow())


class _MixedProduct(torch.autograd.Function):
    """x W^T + b with 16-bit operands, sums in float32 inside the product, and a float32 result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, weight: Tensor, bias: Tensor | None, shadow: Tensor) -> Tensor:
        # Not as attributes: gradient checkpointing drops, and a backward pass frees, what is saved this way alone.
        ctx.save_for_backward(rows if weight.requires_grad else None, shadow)
        ctx.shape, ctx.dtype = x.shape, x.dtype
        out = (rows @ shadow.t())[: x.shape[:-1].numel()].to(x.dtype)
        if bias is not None:
            out += bias
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        need_x, _, need_weight, need_bias, _ = ctx.needs_input_grad
        taken, shadow = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1])
        small = cast_rows(flat, shadow.dtype)
        d_x = (small @ shadow)[: len(flat)].to(ctx.dtype).view(ctx.shape) if need_x else None
        d_weight = None
        if need_weight:
            summed = len(small) if len(flat) <= EXACT else len(flat)
            d_weight = (small[:summed].t() @ taken[:summed]).to(ctx.dtype)
        return d_x, None, d_weight, flat.sum(0) if need_bias else None, None
