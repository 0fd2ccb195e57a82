"""Where tests marked `gpu` run: on CUDA where there is one, else at tiny shapes on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

ON_CUDA = torch.cuda.is_available()
DEVICE = "cuda" if ON_CUDA else "cpu"
ON_DEVICE: dict[str, Any] = {"runtime__target": "auto", "runtime__device": DEVICE}
"""Configuration keys, with __ for dots."""

only_on_cuda = pytest.mark.skipif(not ON_CUDA, reason="shows nothing on a CPU")
