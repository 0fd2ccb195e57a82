"""Invariant 6 within one process: a run that was broken off and resumed repeats the one that was not, bit for bit."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import easy_rewards
import pytest
import torch
from small_runs import Configure, Killed, kill_before, rows, trained_rows, weights

from shoal import Submission, train
from shoal.errors import ConfigError, DataError, TrainingError
from shoal.run_folder import load_saved
from shoal.training.checkpoint import CheckpointStore


def resumed(configure: Configure, folder: Path, *overrides: str) -> dict[str, Any]:
    return train(configure(*overrides, resume=folder), folder)


LORA = ("model.train=lora", "model.lora.r=2", "model.lora.dropout=0.3")
KL = ("algorithm.kl_coef=0.1", "reference.polyak_every=2")
VARIANTS = {
    "in full": (),
    "an adapter with dropout": LORA,
    "minibatches and epochs": ("algorithm.num_minibatches=2", "algorithm.num_epochs=2"),
    "a reference that follows": KL,
    "an adapter and a reference that follows": (*LORA, *KL),
    "a KL in the reward": ("algorithm.kl_coef=0.1", "algorithm.kl_in=reward"),
    "bf16": ("runtime.mixed_precision=bf16",),
    "fp16 with a gradient scaler": ("runtime.mixed_precision=fp16",),
    "16-bit weights with masters": ("model.dtype=bfloat16", "runtime.mixed_precision=auto"),
    "refilled groups": ("algorithm=dapo", "algorithm.refill_rounds=3", "algorithm.overlong.buffer=3"),
    "a cosine": ("optimizer.scheduler=cosine", "optimizer.warmup_steps=0", "optimizer.warmup_ratio=0.3"),
    "data in order": ("data.shuffle=false",),
    "a correction": ("algorithm.correction=token_truncate", "learner.packing=off", "learner.micro_batch_size=1"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_that_was_killed_and_resumed_repeats_the_one_that_was_not(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    overrides = ("run.steps=6", *VARIANTS[name])
    train(configure(*overrides), tmp_path / "whole")
    # Dies in step 4 with a checkpoint of step 2, so that the row of step 3 is written twice.
    kill_before(monkeypatch, "train", 4)
    with pytest.raises(Killed):
        train(configure(*overrides), tmp_path / "killed")
    assert rows(tmp_path / "killed")[-1]["step"] == 3
    torch.manual_seed(99)  # a new process has another state
    resumed(configure, tmp_path / "killed", *overrides)
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    gradients = [row["train/grad_norm"] for row in trained_rows(tmp_path / "whole")]
    assert len(gradients) == 6 and sum(gradient > 0 for gradient in gradients) >= 4


def test_weights_differ_where_the_resumed_run_loses_the_state_of_the_dropout(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    overrides = ("run.steps=3", *LORA)
    train(configure(*overrides), tmp_path / "whole")
    kill_before(monkeypatch, "train", 3)
    with pytest.raises(Killed):
        train(configure(*overrides), tmp_path / "killed")
    monkeypatch.setattr("shoal.training.state.set_rng_state", lambda state: None)
    resumed(configure, tmp_path / "killed", *overrides)
    assert weights(tmp_path / "killed") != weights(tmp_path / "whole")


@pytest.mark.parametrize(
    ("method", "step"),
    [
        ("evaluate", 0),  # nothing has been written
        ("train", 1),
        ("train", 2),
        ("save", 2),  # the row is written, the checkpoint is not
        ("evaluate", 4),
        ("save", 4),
        ("train", 5),
        ("save", 5),  # the final checkpoint, after the final evaluation
        ("save_if_new", 5),
        ("close", 5),  # all is done but the summary
    ],
)
def test_it_does_not_matter_where_in_the_loop_a_run_dies(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, step: int
):
    overrides = ("run.steps=5",)
    train(configure(*overrides), tmp_path / "whole")
    kill_before(monkeypatch, method, step)
    with pytest.raises(Killed):
        train(configure(*overrides), tmp_path / "killed")
    summary = resumed(configure, tmp_path / "killed", *overrides)
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert (summary["steps"], summary["status"]) == (5, "finished")
    assert [row["step"] for row in rows(tmp_path / "whole") if "eval/accuracy" in row] == [0, 4, 5]


def test_a_finished_run_goes_on_when_it_is_given_more_steps(configure: Configure, tmp_path: Path):
    train(configure("run.steps=6", "evaluation.at_end=false"), tmp_path / "whole")
    train(configure("run.steps=3", "evaluation.at_end=false"), tmp_path / "longer")
    summary = resumed(configure, tmp_path / "longer", "run.steps=6", "evaluation.at_end=false")
    assert rows(tmp_path / "longer") == rows(tmp_path / "whole")
    assert (summary["steps"], summary["resume_count"]) == (6, 1)


def test_resume_names_one_of_several_checkpoints_and_later_ones_go(configure: Configure, tmp_path: Path):
    folder = tmp_path / "run"
    train(configure("run.steps=6"), folder)
    before = trained_rows(folder)
    assert CheckpointStore(folder, 3).steps() == [2, 4, 6]
    train(configure("run.steps=3", "checkpoint.every=0", resume=folder / "checkpoints" / "step_2"), folder)
    assert CheckpointStore(folder, 3).steps() == [2]
    assert trained_rows(folder) == before[:3]
    with pytest.raises(TrainingError, match=r"no checkpoint of step 4; there are \[2\]"):
        train(configure("run.steps=6", resume=folder / "checkpoints" / "step_4"), folder)


def test_a_new_run_is_refused_in_the_folder_of_another(configure: Configure, tmp_path: Path):
    train(configure("run.steps=2"), tmp_path)
    before = rows(tmp_path)
    with pytest.raises(ConfigError, match=r"holds a run with checkpoints.*resume="):
        train(configure("run.steps=2"), tmp_path)
    assert rows(tmp_path) == before


def test_a_run_from_python_can_be_resumed_from_the_command_line(configure: Configure, tmp_path: Path):
    cfg = configure("run.steps=2", "run.seed=5")
    train(cfg, tmp_path)
    assert load_saved(tmp_path) == cfg


def test_a_resume_without_a_folder_finds_it(configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    train(configure("run.steps=2", "run.name=mine"))
    summary = train(configure("run.steps=3", "run.name=mine", resume=Path("outputs/mine")))
    assert (summary["steps"], summary["resume_count"]) == (3, 1)


def test_other_data_or_another_model_is_refused_on_resume(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    train(configure("run.steps=2"), tmp_path)
    with pytest.raises(ConfigError, match=r"model\.train=lora: .* cannot change on resume"):
        resumed(configure, tmp_path, "run.steps=3", *LORA)
    monkeypatch.setattr("shoal.tasks.story.TRAIN_PROBLEMS", 10)
    with pytest.raises(DataError, match="9 training prompts and there are 10"):
        resumed(configure, tmp_path, "run.steps=3")


class Signals:
    """A reward function that sends this process a signal when it judges its n-th completion."""

    def __init__(self, number: signal.Signals, at: int) -> None:
        self.number, self.at, self.calls = number, at, 0

    def __call__(self, submission: Submission) -> float:
        self.calls += 1
        if self.calls == self.at:
            os.kill(os.getpid(), self.number)
        return easy_rewards.starts_with_a_digit(submission)


EVALUATED = 6  # completions that the evaluation at the start judges


@pytest.mark.parametrize(
    ("number", "at", "steps"),
    [
        (signal.SIGTERM, 1, 0),
        (signal.SIGINT, EVALUATED + 1, 1),
        (signal.SIGTERM, EVALUATED + 8 * 3, 3),
        (signal.SIGINT, EVALUATED + 8 * 5, 5),
    ],
)
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(
    configure: Configure,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    at: int,
    steps: int,
):
    overrides = ("run.steps=5", "checkpoint.every=0", "evaluation.every=0", "reward.verifiers={own:1}")
    reward: dict[str, Callable[[Submission], float]] = {"own": easy_rewards.starts_with_a_digit}
    whole = configure(*overrides)
    train(whole, tmp_path / "whole", rewards=reward)
    folder = tmp_path / "stopped"
    summary = train(whole, folder, rewards={"own": Signals(number, at)})
    if steps == 5:  # in the last step there is nothing left to stop
        assert summary["status"] == "finished"
        return
    assert (summary["status"], summary["steps"]) == ("stopped", steps)
    assert CheckpointStore(folder, 1).steps() == [steps]
    assert f"stopped after step {steps}; go on with: shoal train resume={folder}" in capsys.readouterr().err
    assert not (folder / "model").exists()
    whole.resume = str(folder)
    summary = train(whole, folder, rewards=reward)
    assert (summary["status"], summary["steps"]) == ("finished", 5)
    assert rows(folder) == rows(tmp_path / "whole")
    assert weights(folder) == weights(tmp_path / "whole")


def test_samples_and_recorded_groups_are_those_of_the_whole_run(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    overrides = ("run.steps=4", "run.record_groups=true")
    train(configure(*overrides), tmp_path / "whole")
    kill_before(monkeypatch, "train", 4)
    with pytest.raises(Killed):
        train(configure(*overrides), tmp_path / "killed")
    resumed(configure, tmp_path / "killed", *overrides)
    for kind in ("samples/*", "groups/*"):
        files = [sorted((tmp_path / run).glob(kind)) for run in ("whole", "killed")]
        assert [file.name for file in files[0]] == [file.name for file in files[1]] != []
        assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]


@pytest.mark.parametrize("name", ["learner.pt", "state.pt"])
def test_a_checkpoint_that_is_being_written_when_the_run_dies_is_absent(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    overrides = ("run.steps=5",)
    train(configure(*overrides), tmp_path / "whole")
    save = torch.save

    def half(state: dict[str, Any], file: Any) -> None:
        if Path(file.name).parent.name == ".writing_step_4" and Path(file.name).name == name:
            file.write(b"half of it")
            raise Killed
        save(state, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half)
        with pytest.raises(Killed):
            train(configure(*overrides), tmp_path / "killed")
    assert (tmp_path / "killed" / "checkpoints" / ".writing_step_4" / name).read_bytes() == b"half of it"
    assert CheckpointStore(tmp_path / "killed", 3).steps() == [2]
    resumed(configure, tmp_path / "killed", *overrides)
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert not list((tmp_path / "killed" / "checkpoints").glob(".writing*"))


def test_a_checkpoint_from_before_the_learner_had_a_file_of_its_own_is_gone_on_from(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    overrides = ("run.steps=4",)
    train(configure(*overrides), tmp_path / "whole")
    kill_before(monkeypatch, "train", 3)
    with pytest.raises(Killed):
        train(configure(*overrides), tmp_path / "killed")
    folder = tmp_path / "killed" / "checkpoints" / "step_2"
    state, learner = (torch.load(folder / name, weights_only=True) for name in ("state.pt", "learner.pt"))
    torch.save({**state, "learner": learner}, folder / "state.pt")
    (folder / "learner.pt").unlink()
    resumed(configure, tmp_path / "killed", *overrides)
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def test_the_best_model_is_that_of_the_best_evaluation_also_over_a_resume(configure: Configure, tmp_path: Path):
    kept = ("evaluation.every=1", "evaluation.prompts=12", "optimizer.warmup_steps=5")
    train(configure("run.steps=6", *kept), tmp_path / "whole")
    train(configure("run.steps=3", *kept), tmp_path / "two")
    resumed(configure, tmp_path / "two", "run.steps=6", *kept)
    best = [next((tmp_path / run / "best").glob("*.safetensors")).read_bytes() for run in ("whole", "two")]
    assert best[0] == best[1]
    summaries = [json.loads((tmp_path / run / "summary.json").read_text()) for run in ("whole", "two")]
    assert summaries[0]["best_step"] == summaries[1]["best_step"] > 0


def test_the_loss_scale_survives_a_kill(configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shoal.learners.optimizer.FIRST_SCALE", 2.0**21)  # overflows in the first steps, and is halved
    overrides = ("run.steps=6", "runtime.mixed_precision=fp16", "checkpoint.every=4", "optimizer.warmup_steps=0")
    train(configure(*overrides), tmp_path / "whole")
    skipped = [row["train/skipped_steps"] for row in trained_rows(tmp_path / "whole")]
    assert skipped[0] >= 1
    assert not any(skipped[1:])
    kill_before(monkeypatch, "train", 6)
    with pytest.raises(Killed):
        train(configure(*overrides), tmp_path / "killed")
    resumed(configure, tmp_path / "killed", *overrides)
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
