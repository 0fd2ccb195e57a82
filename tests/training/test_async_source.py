"""Asynchronous runs: the bound holds, each prompt is trained once, what is slow is waited for, failures have words."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from apart import ApartEngine, apart  # noqa: F401 - a fixture
from small_runs import Configure, Killed, kill_before, rows, trained_rows, weights

from shoal import train
from shoal.config import ShoalConfig
from shoal.engines.base import Request
from shoal.errors import EngineError, TrainingError
from shoal.training.recording import GroupRecording
from shoal.training.state import Run
from shoal.types import Group, StopReason

Ahead = Callable[..., ShoalConfig]
STEPS = 8
HELD = "held back"


@pytest.fixture
def ahead(configure: Configure, apart: list[ApartEngine]) -> Ahead:  # noqa: F811
    """A small asynchronous configuration; what stands in for the server's engine is `apart`."""
    groups = ("source=async", "engine=vllm_server", "weight_sync=broadcast")
    small = (f"run.steps={STEPS}", "run.record_groups=true", "source.max_staleness=2")
    return lambda *overrides, resume=None: configure(*groups, *small, *overrides, resume=resume)


def recorded(folder: Path, steps: int = STEPS) -> list[list[Group]]:
    found = [GroupRecording(folder).read(step) for step in range(1, steps + 1)]
    assert all(groups is not None for groups in found)
    return found  # type: ignore[return-value]


def names(steps: list[list[Group]]) -> list[tuple[str, int]]:
    return [(group.id, group.epoch) for groups in steps for group in groups]


def ages(steps: list[list[Group]]) -> list[int]:
    return [step - one.first_version for step, groups in enumerate(steps) for g in groups for one in g.completions]


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()} & {"rollouts", "scoring", "watchdog"}


@pytest.mark.parametrize("lead", [0, 1, 2])
@pytest.mark.parametrize("order", ["oldest", "first_come"])
def test_no_completion_is_older_than_the_bound_and_every_prompt_is_trained_once(
    ahead: Ahead, tmp_path: Path, lead: int, order: str
):
    train(ahead(f"source.lead={lead}", f"source.order={order}"), tmp_path / "run")
    steps = recorded(tmp_path / "run")
    assert max(ages(steps)) <= 2
    assert (max(ages(steps)) > 0) == (lead > 0)
    # Nine prompts an epoch, two groups a step: all that were drawn and nothing else.
    assert sorted(names(steps)) == sorted({(f"story/train/{n}", 0) for n in range(9)} | set(names(steps)[9:]))
    assert len(set(names(steps))) == 2 * STEPS
    assert not threads()
    metrics = trained_rows(tmp_path / "run")[-1]
    assert metrics["async/staleness_oldest"] <= 2
    assert {"async/staleness_mean", "async/slots_free", "async/slow_share_trained"} <= metrics.keys()
