"""What numbers a device has."""

from __future__ import annotations

import torch


def widest_float(device: torch.device) -> torch.dtype:
    """float64, or float32 on Metal, which has nothing wider."""
    return torch.float32 if device.type == "mps" else torch.float64
