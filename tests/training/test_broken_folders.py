"""Runs whose folder fills up, or holds something else than they wrote."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from small_runs import Configure, rows

from shoal import train
from shoal.errors import DataError, StartRefused, TrainingError
from shoal.monitor.log_file import LOG_FILE
from shoal.monitor.writers import JsonlWriter
from shoal.training.checkpoint import CheckpointStore


def test_a_disk_that_fills_up_in_a_run_is_one_line_that_says_how_to_go_on(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write = JsonlWriter.write

    def full(self: JsonlWriter, step: int, metrics: dict[str, float]) -> None:
        if step == 3:
            raise OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")
        write(self, step, metrics)

    monkeypatch.setattr(JsonlWriter, "write", full)
    with pytest.raises(TrainingError) as caught:
        train(configure("run.steps=4"), tmp_path)
    assert str(caught.value) == (
        f"metrics.jsonl: No space left on device (in the run {tmp_path}): once that is mended, go on with "
        f"shoal train resume={tmp_path}"
    )
    monkeypatch.setattr(JsonlWriter, "write", write)
    assert train(configure("run.steps=4", resume=tmp_path), tmp_path)["steps"] == 4


@pytest.mark.parametrize("change", ["a step less", "another shape", "no weights", "no learner", "a list"])
def test_a_checkpoint_of_something_else_is_one_line(configure: Configure, tmp_path: Path, change: str):
    train(configure("run.steps=2"), tmp_path)
    step, state = CheckpointStore(tmp_path, keep_last=3).load()
    folder = tmp_path / "checkpoints" / f"step_{step}"
    learner = torch.load(folder / "learner.pt", weights_only=True)
    weights = learner["weights"]
    if change == "a step less":
        del state["monitor"]["step"]
    elif change == "another shape":
        weights |= {name: torch.zeros(3, 3) for name in list(weights)[:1]}
    elif change == "no weights":
        del learner["weights"]
    elif change == "no learner":
        (folder / "learner.pt").unlink()
    else:
        state = [1, 2]
    torch.save(state, folder / "state.pt")
    if change != "no learner":
        torch.save(learner, folder / "learner.pt")
    with pytest.raises(TrainingError, match=r"\.pt is no checkpoint of this run .*remove its folder") as caught:
        train(configure("run.steps=4", resume=tmp_path), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_broken_metrics_file_is_told_when_the_run_is_resumed(configure: Configure, tmp_path: Path):
    train(configure("run.steps=2"), tmp_path)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b"\xff\xfe\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl is damaged"):
        train(configure("run.steps=4", resume=tmp_path), tmp_path)


def test_the_log_file_holds_what_was_said_of_every_start_and_how_it_ended(configure: Configure, tmp_path: Path):
    train(configure("run.steps=2"), tmp_path)
    first = (tmp_path / LOG_FILE).read_text(encoding="utf-8")
    assert "evaluation after step 0" in first and "step 1/2" in first and "What to try next" in first
    (tmp_path / "metrics.jsonl").write_text("no rows\n")
    with pytest.raises(DataError):
        train(configure("run.steps=4", resume=tmp_path), tmp_path)
    log = (tmp_path / LOG_FILE).read_text(encoding="utf-8")
    assert log.startswith(first) and "ERROR" in log and "not JSON" in log


def test_a_start_that_the_check_refuses_leaves_no_folder(configure: Configure, tmp_path: Path):
    cfg = configure("run.preflight=true", "reward.verifiers={always_raises:1}")
    cfg.run.root = str(tmp_path / "outputs")
    with pytest.raises(StartRefused):
        train(cfg, tmp_path / "outputs" / "one")
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_checkpoints_is_not_told_to_be_resumed(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    train(configure("run.steps=1", "checkpoint.every=0"), tmp_path)
    assert rows(tmp_path)
    assert "resume=" not in capsys.readouterr().err


def test_a_smoke_test_takes_away_what_it_wrote_of_a_large_model(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    smoke = configure("run.steps=2", "run.made_up_advantages=true")
    train(smoke, tmp_path / "small")
    assert (tmp_path / "small" / "model").exists() and (tmp_path / "small" / "checkpoints").exists()
    monkeypatch.setattr("shoal.api.LITTLE", 1000)
    train(smoke, tmp_path / "large")
    assert not {"model", "best", "checkpoints"} & {path.name for path in (tmp_path / "large").iterdir()}
    said = capsys.readouterr().err.partition("taken away again")[2]
    assert "resume=" not in said and "shoal eval" not in said
