"""Runs of a few steps with a tiny random model: how they are configured, read and killed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shoal.config import ShoalConfig
from shoal.monitor.rows import read_rows, without_timing
from shoal.training.state import Run

SMALL = (
    "runtime.target=cpu",
    "runtime.mixed_precision=none",
    "runtime.threads=1",
    "run.prompts_per_step=2",
    "run.group_size=4",
    "run.preflight=false",
    "sampling.max_new_tokens=12",
    "optimizer.lr=3e-3",
    "optimizer.warmup_steps=2",
    "evaluation.every=4",
    "evaluation.prompts=6",
    "checkpoint.every=2",
    "monitor.tensorboard=false",
    "monitor.curve=false",
    "monitor.progress=lines",
)
"""Overrides of the story preset for a run whose steps take some ten milliseconds."""

Configure = Callable[..., ShoalConfig]


class Killed(BaseException):
    """Stands for the end of the process."""


def kill_before(monkeypatch: pytest.MonkeyPatch, method: str, step: int) -> None:
    """The run dies when it calls `method` of `Run` in this step."""
    whole = getattr(Run, method)

    def dying(run: Run, *arguments: Any) -> Any:
        if run.step + (method == "train") == step:
            monkeypatch.setattr(Run, method, whole)
            raise Killed
        return whole(run, *arguments)

    monkeypatch.setattr(Run, method, dying)


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without what depends on the moment."""
    return [without_timing(row) for row in read_rows(folder)]


def trained_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of the steps, without those of evaluations."""
    return [row for row in rows(folder) if "count/completions" in row]


def weights(folder: Path) -> bytes:
    """The trained weights, as they lie on disk."""
    [file] = (folder / "model").glob("*.safetensors")
    return file.read_bytes()
