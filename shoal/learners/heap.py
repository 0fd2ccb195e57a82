"""Freed memory that the C library holds while a large model is trained on a CPU, given back to the system."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from shoal.runtime import SMALL_MODEL, Runtime

HELD = 2**29
"""Bytes that a process may grow by before freed memory is looked for."""

STATM = Path("/proc/self/statm")


def bound_heap(model: nn.Module, runtime: Runtime) -> bool:
    """Before a pass of one of the model's layers, gives freed memory back once the process has grown by HELD; True
    where that is done.

    glibc takes tensors of up to 32 MiB from its heap. A block that torch has freed there often does not fit the next
    tensor of the same size, since an aligned block needs some bytes more and small objects lie between, and its pages
    stay with the process until they are trimmed. With small models that is little, and kept on purpose: see
    `shoal.runtime.prepare_allocator`.
    """
    if runtime.device.type != "cpu" or sum(one.numel() for one in model.parameters()) < SMALL_MODEL:
        return False
    trim = heap_trimmer()
    if trim is None:
        return False
    lowest = resident()

    def look(*_: Any) -> None:
        nonlocal lowest
        now = resident()
        lowest = min(lowest, now)
        if now - lowest > HELD:
            trim()
            lowest = resident()

    layers = next((one for one in model.modules() if isinstance(one, nn.ModuleList)), ())
    for layer in layers:
        layer.register_forward_pre_hook(look)  # gradient checkpointing calls it in the backward pass too
    return True


def heap_trimmer() -> Callable[[], int] | None:
    """A function that gives all free pages of the heap back; None without glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    return None if trim is None else lambda: trim(ctypes.c_size_t(0))


def resident() -> int:
    """This process's resident memory, bytes, as Linux tells it."""
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
