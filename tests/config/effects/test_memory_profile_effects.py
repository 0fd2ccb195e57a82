"""Keys of `memory_profile`."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from effects.made import made_groups, read_jsonl
from effects.registry import effect
from shoal.monitor.memory import MemoryProfile
from shoal.monitor.monitor import Monitor

SLOWLY = {"memory_profile.enabled": True, "memory_profile.interval": 60.0}


@pytest.fixture
def samples(settings, tmp_path):
    """The samples of two monitored steps under changed keys."""

    def take(changes: dict[str, object]) -> list[dict[str, Any]]:
        folder = tmp_path / f"folder_{len(list(tmp_path.glob('folder_*')))}"
        monitor = Monitor(settings(changes), folder, total_steps=2)
        for step in (1, 2):
            for phase in ("rollout", "reward", "train"):
                with monitor.phase(phase):
                    pass
            monitor.record(step, made_groups(), {})
        monitor.close("finished")
        return samples_in(folder)

    return take


def samples_in(folder: Path) -> list[dict[str, Any]]:
    file = folder / "memory_profile" / "memory_samples.jsonl"
    return read_jsonl(file) if file.exists() else []


@effect("memory_profile.enabled")
def test_memory_is_sampled_where_asked(settings, samples, tmp_path):
    assert samples({}) == []
    assert samples(SLOWLY)
    assert (tmp_path / "folder_1" / "memory_profile" / "memory_summary.md").exists()


@effect("memory_profile.mark_steps", "memory_profile.step_interval")
def test_the_phases_of_steps_are_marked_where_asked(settings, samples):
    def marks(changes: dict[str, object]) -> list[tuple[int, str]]:
        return [(sample["step"], sample["mark"]) for sample in samples({**SLOWLY, **changes})][:-1]  # the last: end

    def of_step(step: int) -> list[tuple[int, str]]:
        return [(step, name) for name in (f"step_{step}_start", "after_rollout", "after_rewards", "after_train")]

    assert marks({}) == of_step(1) + of_step(2)
    assert marks({"memory_profile.mark_steps": False}) == []
    assert marks({"memory_profile.step_interval": 2}) == of_step(1)


@effect("memory_profile.interval")
def test_the_interval_is_the_pause_between_samples(settings, tmp_path):
    def sampled(interval: float) -> int:
        folder = tmp_path / str(interval)
        profile = MemoryProfile(settings({**SLOWLY, "memory_profile.interval": interval}).memory_profile, folder)
        ends = time.monotonic() + (12 if interval < 1 else 0.3)
        while profile.samples < 20 and time.monotonic() < ends:
            time.sleep(0.01)
        profile.stop()
        return len(samples_in(folder))

    assert sampled(0.01) > 20
    assert sampled(60.0) == 1, "the one at the end"


@effect("memory_profile.top_n_children")
def test_so_many_children_are_listed(settings, samples):
    command = [sys.executable, "-c", "input()"]
    children = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(3)]
    try:
        for most in (0, 1, 2):
            taken = samples({**SLOWLY, "memory_profile.top_n_children": most})
            assert {len(sample["top_children"]) for sample in taken} == {most}
    finally:
        for child in children:
            child.communicate(b"\n")


@effect("memory_profile.tracemalloc")
def test_tracemalloc_adds_pythons_own_allocations(settings, samples):
    assert all("traced_mib" not in sample for sample in samples(SLOWLY))
    assert all(sample["traced_mib"] > 0 for sample in samples({**SLOWLY, "memory_profile.tracemalloc": True}))
