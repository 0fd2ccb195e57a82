"""The command line with real training, in processes of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shoal.tasks.warm_start import warm_started_model

pytestmark = pytest.mark.slow

SHOAL = Path(sys.executable).with_name("shoal")


@pytest.fixture(scope="module", autouse=True)
def built_in_model() -> None:
    """Made before the clock of any test runs."""
    warm_started_model()


def shoal(folder: Path, *words: str, status: int = 0) -> tuple[str, str]:
    done = subprocess.run([SHOAL, *words], cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


def test_a_smoke_test_trains_evaluates_resumes_and_saves_a_model_that_eval_takes(tmp_path: Path):
    shoal(tmp_path, "train", "--smoke-test", "run.name=one", "algorithm=dapo")
    run = tmp_path / "outputs" / "one"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(row["step"] for row in rows) == 2
    shoal(tmp_path, "train", "resume=latest", "run.steps=3")
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["steps"], summary["resume_count"], summary["status"]) == (3, 1, "finished")
    out, _ = shoal(tmp_path, "eval", "model=outputs/one/model")
    assert f"accuracy: {summary['accuracy_after']:.4f}\n" in out
    assert sorted(path.name for path in (tmp_path / "outputs").iterdir()) == ["one"]


def test_check_passes_on_the_default(tmp_path: Path):
    out, _ = shoal(tmp_path, "check")
    assert {line.split()[0] for line in out.splitlines()} == {"ok"}
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_with_a_run_that_cannot_start_finishes_the_others_and_ends_with_status_1(tmp_path: Path):
    words = ("train", "--multirun", "--smoke-test", "model.name=story,/no/such/model", "run.name=sweep")
    out, error = shoal(tmp_path, *words, status=1)
    head, good, bad = out.splitlines()[-3:]
    assert head.startswith("run") and "finished" in good and "failed" in bad
    assert "/no/such/model" in error and "Traceback" not in error
    assert (tmp_path / "multirun" / "sweep" / "0" / "summary.json").is_file()


def test_the_joblib_launcher_runs_a_sweep_in_processes_of_its_own(tmp_path: Path):
    words = ("train", "--multirun", "--smoke-test", "optimizer.lr=1e-4,1e-5")
    out, _ = shoal(tmp_path, *words, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    rows = out.splitlines()[-2:]
    assert all("finished" in row for row in rows)
    assert ["optimizer.lr=0.0001" in rows[0], "optimizer.lr=1e-05" in rows[1]] == [True, True]


def test_a_model_that_is_not_there_leaves_no_run_behind(tmp_path: Path):
    _, error = shoal(tmp_path, "train", "model=/no/such/model", status=2)
    assert error.splitlines()[-1].startswith("shoal: error: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(tmp_path: Path, number: int):
    command = [SHOAL, "train", "run.name=one", "run.steps=500", "evaluation.at_start=false", "run.preflight=false"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    run = tmp_path / "outputs" / "one"
    deadline = time.monotonic() + 200
    while not (run / "samples" / "step_1.jsonl").is_file():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(number)
    _, error = process.communicate(timeout=200)
    assert process.returncode == 130
    step = int(re.search(r"stopped after step (\d+); go on with: shoal train resume=outputs/one", error)[1])
    assert (run / "checkpoints" / f"step_{step}").is_dir()
    shoal(tmp_path, "train", "resume=outputs/one", f"run.steps={step + 1}", "evaluation.at_end=false")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "count/completions" in row] == list(range(1, step + 2))
