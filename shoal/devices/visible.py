"""The GPUs that this process sees, under the names by which its children can be given them."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from shoal.devices.plan import Device


def visible_devices() -> tuple[Device, ...]:
    """The GPUs that torch sees, in its order. The first call starts CUDA in this process."""
    entries = visible_entries(os.environ, torch.cuda.device_count())
    found = [torch.cuda.get_device_properties(index) for index in range(len(entries))]
    return tuple(
        Device(index, entry, one.name, one.total_memory)
        for index, (entry, one) in enumerate(zip(entries, found, strict=True))
    )


def visible_entries(environment: Mapping[str, str], count: int) -> list[str]:
    """What CUDA_VISIBLE_DEVICES of a child has to say for each of the `count` GPUs that torch sees.

    These are the entries of this process's own list, numbers or UUIDs: a child counts the machine's GPUs, not ours.
    """
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    entries = [entry.strip() for entry in listed.split(",")] if listed else []
    return [entries[index] if index < len(entries) else str(index) for index in range(count)]
