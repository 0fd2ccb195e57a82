"""Checkpoints: complete or absent, and exact to resume from."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shoal.errors import TrainingError
from shoal.files import file_trouble, sync_folder
from shoal.learners.saved import STATE, read_state

logger = getLogger(__name__)


def rng_state() -> dict[str, Any]:
    """The state of every random generator of the process, as plain values and tensors."""
    version, keys, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=True)
    name, words, position, has_gauss, cached = legacy
    return {
        "python": [version, list(keys), gauss],
        "numpy": [name, torch.from_numpy(words.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """The inverse of `rng_state`."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    name, words, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, words.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


class CheckpointStore:
    """The folder `checkpoints/` of a run, one subfolder a step, the newest `keep_last` kept."""

    def __init__(self, run_dir: Path, keep_last: int) -> None:
        self.folder = run_dir / "checkpoints"
        self.keep_last = keep_last

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, in order."""
        return sorted(int(path.parent.name.removeprefix("step_")) for path in self.folder.glob(f"step_*/{STATE}"))

    def save(self, step: int, state: dict[str, Any], write: Callable[[Path], object] = lambda folder: None) -> Path:
        """Writes beside the final place, syncs, renames, then removes the oldest ones. `write` adds its own files.

        Raises:
            TrainingError: the file system refuses it; earlier checkpoints are whole.
        """
        final = self.at(step)
        partial = self.folder / f".writing_step_{step}"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            write(partial)
            with (partial / STATE).open("wb") as file:
                torch.save(state, file)
            sync_folder(partial)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            sync_folder(self.folder)
        except (OSError, RuntimeError) as error:
            trouble = file_trouble(error)
            shutil.rmtree(partial, ignore_errors=True)
            if trouble is None:
                raise
            steps = self.steps()
            last = f"the newest whole one is of step {steps[-1]}" if steps else "there is no earlier one"
            raise TrainingError(
                f"the checkpoint of step {step} cannot be written in {self.folder}: {trouble}; {last}"
            ) from error
        for old in self.steps()[: -self.keep_last]:
            shutil.rmtree(self.at(old))
        return final

    def drop_after(self, step: int) -> None:
        """Removes the checkpoints of later steps."""
        for later in self.steps():
            if later > step:
                shutil.rmtree(self.at(later))

    def load(self, step: int | None = None) -> tuple[int, dict[str, Any]] | None:
        """The newest checkpoint, or the one of `step`; None where there is none.

        Raises:
            TrainingError: the file cannot be read.
        """
        steps = self.steps()
        for leftover in self.folder.glob(".writing_step_*"):
            shutil.rmtree(leftover)
        if not steps:
            return None
        chosen = steps[-1] if step is None else step
        if chosen not in steps:
            raise TrainingError(f"{self.folder}: no checkpoint of step {chosen}; there are {steps}")
        return chosen, read_state(self.at(chosen) / STATE)

    def at(self, step: int) -> Path:
        """The folder of a checkpoint."""
        return self.folder / f"step_{step}"
