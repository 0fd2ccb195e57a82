"""Rotary embeddings from a table: one cosine for a position, not one for each token that stands there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from shoal.runtime import Runtime


def use_rotary_tables(model: nn.Module, runtime: Runtime) -> None:
    """On a CPU, where cosines are slow: a packed batch has thousands of tokens at a few dozen positions.

    The values are those of the module's own forward, bit for bit. Elsewhere nothing changes, because the number of
    positions would have to be read back from the device.
    """
    if runtime.device.type != "cpu":
        return
    for module in model.modules():
        kind = type(module)
        if kind.__name__.endswith("RotaryEmbedding") and not issubclass(kind, _FromTable):
            module.__class__ = type(kind.__name__, (_FromTable, kind), {})


class _FromTable(nn.Module):
    """Stands before the class that computes cosines and sines, [R, L, D], of positions [R, L]."""

    def forward(self, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        if position_ids.dim() != 2:
            return super().forward(x, position_ids, *args, **kwargs)
        positions = torch.arange(int(position_ids.max()) + 1)[None]
        table = super().forward(x, positions, *args, **kwargs)
        return tuple(values[0][position_ids] for values in table)
