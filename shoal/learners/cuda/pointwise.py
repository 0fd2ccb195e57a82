"""Rotary embeddings and gated MLPs with few passes over memory: their pointwise work as one kernel each."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from shoal.algorithms.fused import fused
from shoal.engines.builtin.fused_weights import ACTIVATIONS
from shoal.runtime import Runtime

ROTATE = "apply_rotary_pos_emb"


def use_fused_pointwise(causal_lm: Any, runtime: Runtime) -> None:
    """On CUDA, for models of transformers: the same functions, compiled."""
    if runtime.device.type == "cuda" and type(causal_lm).__module__.startswith("transformers.models."):
        fuse(causal_lm)


def fuse(causal_lm: Any) -> None:
    """Replaces them, on any device. The rotation is a function of the model's module in transformers, so that all
    models of this kind have the new one; off CUDA it is the old one."""
    family: Any = sys.modules[type(causal_lm).__module__]
    rotate = getattr(family, ROTATE, None)
    if rotate is not None and not hasattr(rotate, "__wrapped__"):
        setattr(family, ROTATE, fused(rotate))
    activation = ACTIVATIONS.get(getattr(causal_lm.config, "hidden_act", ""))
    if activation is None:
        return
    for module in causal_lm.modules():
        kind = type(module)
        if kind.__name__.endswith("MLP") and _is_gated(module):
            # Not the module's own activation, a module: torch.compile would look at each one anew.
            module.__class__ = type(kind.__name__, (_FusedMLP, kind), {"activation": staticmethod(activation)})


@torch.no_grad()
def _is_gated(module: Any) -> bool:
    """Whether it computes down(act(gate(x)) * up(x)): its parts have these names, and a trial says so. Not where the
    weights are elsewhere or packed: they could not be tried."""
    if not all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
        return False
    weight = getattr(module.gate_proj, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.is_floating_point():
        return False
    x = torch.linspace(-1.0, 1.0, weight.shape[1], device=weight.device).to(weight.dtype)[None]
    by_parts = module.down_proj(module.act_fn(module.gate_proj(x)) * module.up_proj(x))
    return torch.allclose(module(x), by_parts, rtol=1e-2, atol=1e-3)


class _FusedMLP(nn.Module):
    """Stands before a model's own class."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module
    activation: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.down_proj(gate(self.gate_proj(x), self.up_proj(x), self.activation))
        return found


@fused
def gate(gated: Tensor, up: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """act(gate) * up, pointwise."""
    return activation(gated) * up
