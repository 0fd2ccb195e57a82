"""Refuses what Apple's Metal lacks, on a machine without it: numbers wider than float32, and operators that have no MPS
kernel in the list that torch is built from. What is allowed runs on the CPU."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import torchgen
import yaml
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WIDE = (torch.float64, torch.complex128)
COMPOSITES = {"CompositeImplicitAutograd", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional"}
OF_THE_CPU_ALONE = ("_for_cpu", "_for_cpu_backward")
"""What a call of scaled_dot_product_attention chooses on a CPU; on Metal it chooses another."""


class RefusingMetal(TorchDispatchMode):
    """While it is active, such operators raise. `seen` holds those that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if not has_kernel(name) and not name.endswith(OF_THE_CPU_ALONE):
            raise NotImplementedError(f"The operator '{name}' is not currently implemented for the MPS device")
        found = func(*args, **(kwargs or {}))
        if name == "aten::lift_fresh":  # an array of the host becomes a tensor of the host
            return found
        wide = [one.dtype for one in tree_leaves(found) if isinstance(one, torch.Tensor) and one.dtype in WIDE]
        if wide:
            raise TypeError(f"{name}: the MPS framework does not support {wide[0]}")
        self.seen.add(name)
        return found


@cache
def kernels() -> dict[str, bool]:
    """Whether each operator of torch runs on MPS."""
    file = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
    listed = yaml.load(file.read_text(encoding="utf-8"), yaml.CSafeLoader)
    entries = {entry["func"].partition("(")[0]: entry for entry in listed}

    def runs(entry: dict[str, Any]) -> bool:
        if "structured_delegate" in entry:
            return runs(entries[entry["structured_delegate"]])
        keys = ", ".join(entry.get("dispatch") or ["CompositeImplicitAutograd"]).split(", ")
        return "MPS" in keys or not COMPOSITES.isdisjoint(keys)

    return {f"aten::{name}": runs(entry) for name, entry in entries.items()}


def has_kernel(name: str) -> bool:
    """Whether an operator runs on MPS. Those that stand in no list are made of others."""
    return kernels().get(name, True)
