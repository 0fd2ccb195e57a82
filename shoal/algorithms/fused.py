"""Pointwise work and sums over a dimension, as few kernels on CUDA."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache, wraps
from importlib.util import find_spec
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def fused(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, compiled by torch.compile at its first call with a tensor on CUDA as its first argument.

    Elsewhere, and where there is no Triton or no C compiler, it runs as it stands. TORCH_COMPILE_DISABLE=1 turns
    compiling off.
    """

    @cache
    def compiled() -> Callable[..., Any]:
        return torch.compile(function, dynamic=True)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        found: R = (compiled() if compiles(args[0]) else function)(*args, **kwargs)
        return found

    return call


def compiles(first: Any) -> bool:
    """Whether a `fused` function with this first argument is compiled."""
    return isinstance(first, Tensor) and first.is_cuda and can_compile()


@cache
def can_compile() -> bool:
    """Whether there are Triton and a C compiler."""
    return find_spec("triton") is not None and any(shutil.which(name) for name in ("cc", "gcc", "clang"))
