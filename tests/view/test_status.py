"""`shoal status`: runs that start, run, have ended and have died."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from socket import gethostname
from time import time

import pytest

from shoal.cli.command import main
from shoal.monitor.status import Status, read_status
from shoal.run_folder import SAVED
from shoal.view.status import status_lines

HOLDING = """
import sys
from pathlib import Path
from shoal.files import only_trainer
with only_trainer(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def a_status(**fields: object) -> Status:
    moment = {
        "process": os.getpid(),
        "host": gethostname(),
        "started": time() - 600,
        "time": time() - 1,
        "step": 12,
        "total_steps": 400,
        "now": "wait",
        "since": time() - 4,
        "rollouts": "wait; 8 groups under way",
        "learner_version": 12,
        "engine_version": 11,
        "parts": [["10.0.0.2", "rank 1", "train"], ["", "reward workers", "4 of 4 run"]],
    }
    return Status(**(moment | fields))  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with a configuration and one row."""
    folder = tmp_path / "run"
    (folder / SAVED.parent).mkdir(parents=True)
    (folder / SAVED).write_text("run: {}\n")
    row = {"step": 12, "count/completions": 8, "reward/mean": 0.25, "seconds/step": 1.5}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    return folder


@pytest.fixture
def trainer(run: Path):
    """A process that has locked the run."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.communicate()


def test_a_living_run_says_what_it_does_where_its_parts_are_and_how_old_that_is(run: Path, trainer):
    a_status(process=trainer.pid).write(run)
    first, now, rollouts, versions, *parts, last = status_lines(run)
    assert f"running, after step 12 of 400 (process {trainer.pid} on {gethostname()}, for 9m59s)" in first
    assert "last sign of life 1s ago" in first
    assert now.split() == ["now", "wait,", "for", "3s"]
    assert rollouts.split() == ["rollouts", "8", "groups", "under", "way"]
    assert versions.split() == ["versions", "learner", "12,", "engine", "11"]
    assert sorted(part.split() for part in parts) == sorted(
        [["10.0.0.2", "rank", "1", "train"], [gethostname(), "reward", "workers", "4", "of", "4", "run"]]
    )
    assert "reward 0.250, took 1.5 s" in last


def test_a_run_that_still_loads_is_not_shown_by_what_an_earlier_start_left(run: Path, trainer):
    a_status(process=1).write(run)
    first = next(iter(status_lines(run)))
    assert first.endswith(f"starting (process {trainer.pid}): it loads the model, the data and the engine")


def test_a_run_whose_process_was_killed_says_so_and_how_to_go_on(run: Path, trainer):
    a_status(process=trainer.pid, time=time() - 100).write(run)
    trainer.send_signal(signal.SIGKILL)
    trainer.wait(30)
    first = next(iter(status_lines(run)))
    assert f"its process ({trainer.pid} on {gethostname()}) is gone, after step 12: it was last seen 1m40s ago" in first
    assert f"shoal train resume={run}" in first


def test_a_run_that_failed_says_why_and_an_older_failure_is_not_taken_for_it(run: Path):
    a_status().write(run)
    note = {"time": time() - 900, "step": 3, "level": "error", "text": "an older reason"}
    (run / "notes.jsonl").write_text(json.dumps(note) + "\n")
    assert "is gone" in next(iter(status_lines(run)))
    (run / "notes.jsonl").write_text(json.dumps(note | {"time": time(), "text": "the disk is full"}) + "\n")
    assert next(iter(status_lines(run))).endswith("failed after step 12: the disk is full")


def test_a_finished_run_is_not_taken_for_one_that_was_resumed_and_killed(run: Path):
    a_status().write(run)
    (run / "summary.json").write_text(json.dumps({"status": "finished"}))
    assert next(iter(status_lines(run))).endswith("finished after step 12")
    a_status(started=time() + 10).write(run)
    assert "is gone" in next(iter(status_lines(run)))


def test_of_a_run_on_another_machine_the_age_of_its_status_decides(run: Path):
    a_status(host="elsewhere").write(run)
    assert "on elsewhere" in next(iter(status_lines(run)))
    assert "running, after step 12" in next(iter(status_lines(run)))
    a_status(host="elsewhere", time=time() - 100).write(run)
    assert "no sign of life of its process" in next(iter(status_lines(run)))


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_folder_without_a_run_is_refused_in_one_line(tmp_path: Path, capsys, name: str):
    (tmp_path / "empty").mkdir()
    assert main(["status", str(tmp_path / name)]) == 2
    assert capsys.readouterr().err == (
        f"shoal: error: {tmp_path / name} is no run folder: there is no {SAVED} in it; shoal train names a run's "
        "folder\n"
    )


def test_a_damaged_status_is_none(run: Path):
    (run / "status.json").write_text('{"process": 1')
    assert read_status(run) is None
    assert "its process is gone" in next(iter(status_lines(run)))
