"""LoRA in 16 bits with few passes over memory: PEFT computes a layer's adapter on a float32 copy of its input, which
it keeps for the backward pass, and adds a float32 result."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from shoal.runtime import Runtime


def use_lean_adapters(wrapped: nn.Module, runtime: Runtime) -> None:
    """On CUDA, for models whose weights have 16 bits."""
    if runtime.device.type == "cuda" and runtime.param_dtype.itemsize == 2:
        lighten(wrapped)


def lighten(wrapped: nn.Module) -> None:
    """Replaces the layers of PEFT that have an adapter beside a plain linear layer, on any device."""
    for module in wrapped.modules():
        kind = type(module)
        if hasattr(module, "lora_variant") and type(getattr(module, "base_layer", None)) is nn.Linear:
            module.__class__ = type(kind.__name__, (_LeanAdapter, kind), {})


class _LeanAdapter(nn.Module):
    """Stands before PEFT's own class, and does what one active adapter without dropout or variant needs."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer: Any = self
        base = layer.base_layer
        names = [name for name in layer.active_adapters if name in layer.lora_A]
        if args or kwargs or layer.disable_adapters or layer.merged or len(names) != 1 or layer.lora_variant:
            found: Tensor = super().forward(x, *args, **kwargs)
            return found
        (name,) = names
        down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
        drops = self.training and not isinstance(layer.lora_dropout[name], nn.Identity)
        # Weights of another dtype are autocast's to cast; DeepSpeed's parts are whole only in a module's own call.
        if drops or base.weight.dtype != x.dtype or hasattr(base.weight, "ds_id") or hasattr(down, "ds_id"):
            found = super().forward(x)
        else:
            found = _Adapted.apply(x, base.weight, base.bias, down, up, layer.scaling[name])
        return found


class _Adapted(torch.autograd.Function):
    """W x + b + s B A x for x [..., I], with A [r, I] and B [O, r] of any dtype and W [O, I] frozen. Keeps x and A x.
    Products have x's dtype; the gradients of A and B are sums over tokens in float32."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scaling: float
    ) -> Tensor:
        out = F.linear(x, weight, bias)
        narrow = x.flatten(0, -2) @ down.to(x.dtype).t()
        out.view(-1, out.shape[-1]).addmm_(narrow, up.to(x.dtype).t(), alpha=scaling)
        ctx.save_for_backward(x, weight, down, up, narrow)
        ctx.scaling = scaling
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, down, up, narrow = ctx.saved_tensors
        flat, grads = x.flatten(0, -2), grad.flatten(0, -2)
        d_narrow = (grads @ up.to(x.dtype)).mul_(ctx.scaling)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = (grads @ weight).addmm_(d_narrow, down.to(x.dtype)).view(x.shape)
        d_down = _product(d_narrow.t(), flat).to(down.dtype) if ctx.needs_input_grad[3] else None
        d_up = _product(grads.t(), narrow).mul_(ctx.scaling).to(up.dtype) if ctx.needs_input_grad[4] else None
        return d_x, None, None, d_down, d_up, None


def _product(left: Tensor, right: Tensor) -> Tensor:
    """[n, T] x [T, m], summed and kept in float32 where the numbers have 16 bits."""
    if left.dtype.itemsize > 2:
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()
