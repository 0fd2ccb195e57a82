"""What a run writes of itself for `shoal status`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from time import monotonic

from small_runs import SMALL

from shoal import load_config, train
from shoal.monitor.status import read_status
from shoal.rewards.base import Submission


def test_another_process_sees_what_a_run_does_and_what_became_of_it(tmp_path: Path, tiny_model: Path):
    said: list[str] = []
    folder = tmp_path / "run"

    def status() -> str:
        command = [sys.executable, "-m", "shoal.cli", "status", str(folder)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    def reward(submission: Submission) -> float:
        deadline = monotonic() + 60
        while not said or ("engine 0" not in said[-1] and monotonic() < deadline):
            said.append(status())
        return float(len(submission.text) % 2)

    cfg = load_config("story", [*SMALL, f"model.name={tiny_model}", "run.steps=2"])
    train(cfg, folder, rewards={"length": reward})
    assert f"{folder}: running, after step 0 of 2 (process " in said[-1]
    assert "\n  now        " in said[-1]
    assert "\n  versions   learner 0, engine 0\n" in said[-1]
    found = read_status(folder)
    assert found is not None and (found.step, found.learner_version) == (2, 2)
    assert [part for _, part, _ in found.parts] == ["learner", "engine"]
    assert status().startswith(f"{folder}: finished after step 2\n")
