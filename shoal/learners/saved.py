"""What a learner in one process writes into the folder of a checkpoint, and how it is read again."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from shoal.errors import TrainingError

LEARNER = "learner.pt"
STATE = "state.pt"
"""The run's own file beside it. Until Shoal 0.1 this one held the learner's part too, under `learner`."""


def unusable(file: Path, why: str) -> TrainingError:
    """The error of a checkpoint that cannot be gone on from."""
    return TrainingError(f"{file} {why}; remove its folder to resume from an older checkpoint")


def read_state(file: Path, *, mmap: bool = False) -> Any:
    """What a checkpoint's file holds, tensors on the CPU; with `mmap` they stay in the file until they are used.

    Raises:
        TrainingError: it cannot be read.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except (RuntimeError, OSError, EOFError, UnpicklingError, ValueError, LookupError, AttributeError) as error:
        raise unusable(file, f"cannot be read ({' '.join(str(error).split())[:200]})") from error


def read_learner(checkpoint: Path) -> dict[str, Any]:
    """The version, the trained weights and the optimizer of a checkpoint (`RUN/checkpoints/step_N`).

    Raises:
        TrainingError: they are not there, or cannot be read.
    """
    file = checkpoint / LEARNER
    if file.exists():
        state = read_state(file)
    else:  # written before the learner had a file of its own
        file = checkpoint / STATE
        state = read_state(file)
        state = state.get("learner") if isinstance(state, dict) else None
    if not isinstance(state, dict) or not isinstance(state.get("weights"), dict):
        raise unusable(file, "is no checkpoint of this run (it holds no trained weights)")
    return state
