"""RMSNorm as one kernel: a model's own takes eight passes over memory, and its backward pass twice as many."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoal.runtime import Runtime

TOLERANCE = {4: 1e-5, 2: 2e-2}  # by bytes of a number


def use_fused_norms(model: nn.Module, runtime: Runtime) -> None:
    """On CUDA, lets torch's kernel compute every norm that is weight x / sqrt(mean(x^2) + eps): each module is tried on
    an input, so that variants (Gemma's 1 + weight) stay as they are."""
    if runtime.device.type == "cuda":
        fuse(model)


def fuse(model: nn.Module) -> None:
    """Replaces the norms, on any device."""
    for module in model.modules():
        kind = type(module)
        if kind.__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon") and _is_plain(module):
            module.__class__ = type(kind.__name__, (_FusedNorm, kind), {})


@torch.no_grad()
def _is_plain(module: Any) -> bool:
    weight = module.weight
    if not isinstance(weight, Tensor) or weight.dtype.itemsize not in TOLERANCE:
        return False
    x = torch.linspace(-1.0, 2.0, 3 * len(weight), device=weight.device).view(3, -1).to(weight.dtype)
    tolerance = TOLERANCE[weight.dtype.itemsize]
    return torch.allclose(module(x), _FusedNorm.forward(module, x), rtol=tolerance, atol=tolerance)


class _FusedNorm(nn.Module):
    """Stands before a model's own RMSNorm class."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, x: Tensor) -> Tensor:
        # Under autocast x may have 16 bits where the weight has 32; the product, as the module's own, then has 32.
        return F.rms_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, self.variance_epsilon)
