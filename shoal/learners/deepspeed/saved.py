"""A checkpoint in parts, one of each rank, for any number of ranks to read. No import of DeepSpeed.

A part holds whole tensors, so that it says nothing of how ZeRO had divided them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoal.learners.saved import read_learner, read_state, unusable

Tensors = dict[str, dict[str, Tensor]]
"""By a parameter's name: `weight` in float32, and the moments `exp_avg` and `exp_avg_sq` after a step."""


def part_name(rank: int, world: int) -> str:
    """The file of a rank."""
    return f"learner-{rank + 1:05d}-of-{world:05d}.pt"


def write_part(folder: Path, rank: int, world: int, tensors: Tensors, counts: Mapping[str, Any]) -> None:
    """Writes the tensors that a rank answers for; the counts are the same on all."""
    with (folder / part_name(rank, world)).open("wb") as file:
        torch.save({"counts": dict(counts), "tensors": tensors}, file)


def read_parts(folder: Path) -> tuple[dict[str, Any], Tensors]:
    """The counts, and the tensors of all parts, in the memory of the files until they are used.

    Raises:
        TrainingError: there is no part, one is missing, or one cannot be read.
    """
    files = sorted(folder.glob("learner-*-of-*.pt"))
    found = re.fullmatch(r"learner-\d+-of-(\d+)\.pt", files[0].name) if files else None
    if found is None:
        raise unusable(folder, "has no part of a DeepSpeed learner")
    world = int(found[1])
    counts: dict[str, Any] = {}
    tensors: Tensors = {}
    for rank in range(world):
        file = folder / part_name(rank, world)
        if not file.exists():
            raise unusable(file, f"is missing: {world} ranks wrote one each")
        part = read_state(file, mmap=True)
        if not isinstance(part, dict) or not isinstance(part.get("tensors"), dict):
            raise unusable(file, "is no part of a DeepSpeed learner")
        counts = part["counts"]
        tensors |= part["tensors"]
    return counts, tensors


def saved_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The trained weights of a checkpoint, whichever learner wrote it.

    Raises:
        TrainingError: they are not there, or cannot be read.
    """
    if any(checkpoint.glob("learner-*-of-*.pt")):
        return {name: found["weight"] for name, found in read_parts(checkpoint)[1].items()}
    return read_learner(checkpoint)["weights"]
