"""Invariant 6 with real processes: SIGKILL at random moments, resume, and the same metrics bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
from small_runs import SMALL

from shoal.monitor.rows import METRICS_FILE, complete_lines, read_rows, without_timing
from shoal.training.checkpoint import CheckpointStore

pytestmark = pytest.mark.slow

SHOAL = (sys.executable, "-m", "shoal.cli", "train")
STEPS = 30
KILLS = 10
OVERRIDES = (
    *SMALL,
    # By its import path: a process of its own must find it.
    r"reward.verifiers={easy_rewards\:slowly:1}",
    f"run.steps={STEPS}",
    "run.preflight=true",
    "run.name=run",
    "checkpoint.every=3",
    "evaluation.every=10",
    "algorithm.num_minibatches=2",
    "model.train=lora",
    "model.lora.dropout=0.1",
    "monitor.progress=off",
)

HALF_A_CHECKPOINT = """
import os, sys, time, torch
whole = torch.save
def half(state, file):
    whole(state, file)
    if state.get("step") == 6:
        file.truncate(file.tell() // 2)
        file.flush()
        time.sleep(600)
torch.save = half
from shoal.cli.command import main
sys.exit(main(["train", *sys.argv[1:]]))
"""
"""The command, which hangs with one checkpoint written by half."""


class Runs:
    """Starts and resumes one run in a folder, in processes of their own."""

    def __init__(self, root: Path, model: Path) -> None:
        self.folder = root / "run"
        self.first = [f"model.name={model}", f"run.root={root}", *OVERRIDES]
        here = str(Path(__file__).parent)
        self.environment = {**os.environ, "PYTHONPATH": here, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def start(self, *command: str) -> subprocess.Popen[str]:
        begun = (self.folder / ".hydra" / "config.yaml").exists()
        words = [f"resume={self.folder}"] if begun else self.first
        return subprocess.Popen(
            [*(command or SHOAL), *words],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self) -> None:
        process = self.start()
        _, error = process.communicate(timeout=200)
        assert process.returncode == 0, error
        assert self.rows()[-1]["step"] == STEPS and (self.folder / "summary.json").exists()

    def rows(self) -> list[dict[str, Any]]:
        return [without_timing(row) for row in read_rows(self.folder)]

    def written(self) -> int:
        return len(complete_lines(self.folder / METRICS_FILE))

    def last_step(self) -> int:
        return max((row["step"] for row in self.rows()), default=-1)

    def changed(self) -> int:
        """When metrics.jsonl was written last, in nanoseconds."""
        file = self.folder / METRICS_FILE
        return os.stat(file).st_mtime_ns if file.exists() else 0

    def got_to(self, step: int, since: int) -> bool:
        """Whether the running process has written this step or a later one."""
        return self.changed() > since and self.last_step() >= step

    def kill(self, process: subprocess.Popen[str]) -> None:
        process.kill()
        _, error = process.communicate(timeout=60)
        assert process.returncode == -9, error


def wait_for(process: subprocess.Popen[str], happened: Any) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline, "the run does not get on"
        if process.poll() is not None:
            pytest.fail(f"the run ended: {process.communicate()[1]}")
        time.sleep(0.001)


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rows of a run that nobody killed."""
    runs = Runs(tmp_path_factory.mktemp("whole"), tiny_model)
    runs.finish()
    rows = runs.rows()
    assert [row["step"] for row in rows if "eval/accuracy" in row] == [0, 10, 20, 30]
    assert len({row["reward/mean"] for row in rows if "reward/mean" in row}) > 2
    return rows


@pytest.mark.timeout(900)
def test_a_run_killed_ten_times_at_random_moments_writes_the_same_metrics(
    whole: list[dict[str, Any]], tiny_model: Path, tmp_path: Path
):
    random = Random(0)
    runs = Runs(tmp_path, tiny_model)
    moments: list[int | None] = [None, None, *sorted(random.sample(range(STEPS - 2), KILLS - 2))]
    reached = []
    for step in moments:
        process = runs.start()
        if step is None:  # at any time between the start of the interpreter and the first steps
            time.sleep(random.uniform(0.1, 4.0))
        else:
            wait_for(process, partial(runs.got_to, step, runs.changed()))
            time.sleep(random.uniform(0.0, 0.08))
        runs.kill(process)
        reached.append(runs.last_step())
        assert all((folder / "state.pt").exists() for folder in runs.folder.glob("checkpoints/step_*"))
    assert len(set(reached)) > 5, reached  # it died in many places
    runs.finish()
    assert runs.rows() == whole


@pytest.mark.timeout(400)
def test_a_kill_in_the_middle_of_a_checkpoint_leaves_the_one_before(
    whole: list[dict[str, Any]], tiny_model: Path, tmp_path: Path
):
    runs = Runs(tmp_path, tiny_model)
    process = runs.start(sys.executable, "-c", HALF_A_CHECKPOINT)
    partial = runs.folder / "checkpoints" / ".writing_step_6" / "state.pt"
    wait_for(process, lambda: partial.exists() and partial.stat().st_size > 0)
    time.sleep(0.5)
    runs.kill(process)
    assert partial.stat().st_size > 0
    store = CheckpointStore(runs.folder, 3)
    assert store.steps() == [3]
    assert [row["step"] for row in runs.rows()] == [0, 1, 2, 3, 4, 5, 6]
    runs.finish()
    assert not partial.parent.exists()
    assert runs.rows() == whole


@pytest.mark.timeout(400)
def test_a_kill_before_the_first_checkpoint_starts_over(whole: list[dict[str, Any]], tiny_model: Path, tmp_path: Path):
    runs = Runs(tmp_path, tiny_model)
    process = runs.start()
    wait_for(process, lambda: runs.written() >= 2)
    runs.kill(process)
    if CheckpointStore(runs.folder, 3).steps():
        pytest.skip("the machine stopped this test for so long that the run made a checkpoint")
    runs.finish()
    assert runs.rows() == whole
