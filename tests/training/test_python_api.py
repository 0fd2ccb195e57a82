"""What `from shoal import ...` offers, and how runs end that cannot go on."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import easy_rewards
import pytest
from small_runs import Configure, trained_rows

import shoal
from shoal import Submission, build, evaluate, load_config, train
from shoal.api import command
from shoal.config import ShoalConfig
from shoal.engines.builtin.engine import TorchEngine
from shoal.errors import ConfigError, TrainingError
from shoal.learners.local import LocalLearner
from shoal.monitor.monitor import Monitor
from shoal.monitor.rows import read_rows
from shoal.rewards.scorer import Scorer
from shoal.training.recording import GroupRecording
from shoal.training.sources import SyncSource
from shoal.weight_sync.in_place import InPlaceSync


def test_the_package_offers_a_few_documented_names():
    assert shoal.__all__ == ["Submission", "batched", "evaluate", "load_config", "train", "verifier"]
    for name in shoal.__all__:
        assert getattr(shoal, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        shoal.nothing  # noqa: B018 - the look-up is what is tested


def test_load_config_gives_a_checked_configuration():
    cfg = load_config("story", ["run.steps=7", "algorithm=dapo"])
    assert isinstance(cfg, ShoalConfig)
    assert (cfg.run.steps, cfg.algorithm.clip_high) == (7, 0.28)
    with pytest.raises(ConfigError, match=r"no key 'run.stepz'; the nearest is 'run.steps'"):
        load_config("story", ["run.stepz=7"])


def test_train_takes_rewards_as_functions_of_a_submission(configure: Configure, tmp_path: Path):
    seen: list[Submission] = []

    def short(submission: Submission) -> float:
        seen.append(submission)
        return 1.0 - submission.num_tokens / 12

    cfg = configure("run.steps=3", "evaluation.at_start=false", "evaluation.at_end=false")
    cfg.reward.verifiers = {}
    summary = train(cfg, tmp_path, rewards={"short": short})
    assert len(seen) == 3 * 8
    assert {type(one.ground_truth) for one in seen} == {str}
    assert all(one.messages[-1]["content"].endswith("How many?") for one in seen)
    found = trained_rows(tmp_path)
    for row in found:
        assert row["reward/mean"] == pytest.approx(1 - row["length/mean"] / 12)
        assert row["reward_part/short/mean"] == row["reward/mean"]
    assert summary["reward_last"] == pytest.approx(found[-1]["reward/mean"])
    assert summary == json.loads((tmp_path / "summary.json").read_text())


def test_several_functions_are_weighted_by_the_configuration(configure: Configure, tmp_path: Path):
    rewards: dict[str, Callable[[Submission], float]] = {
        "one": lambda submission: 1.0,
        "digit": easy_rewards.starts_with_a_digit,
    }
    cfg = configure("run.steps=1", "reward.verifiers={one:0.5,digit:2}", "evaluation.at_start=false")
    train(cfg, tmp_path / "weighted", rewards=rewards)
    cfg.reward.verifiers = {}
    train(cfg, tmp_path / "plain", rewards=rewards)
    [weighted], [plain] = trained_rows(tmp_path / "weighted"), trained_rows(tmp_path / "plain")
    digit = weighted["reward_part/digit/mean"]
    assert weighted["reward/mean"] == pytest.approx(0.5 + 2 * digit)
    assert plain["reward/mean"] == pytest.approx(1 + digit)


def test_training_on_a_reward_raises_it(configure: Configure, tmp_path: Path):
    rate = ("optimizer.lr=1e-2", "optimizer.warmup_steps=5")
    cfg = configure("run.steps=60", "run.group_size=8", "checkpoint.every=0", *rate)
    summary = train(cfg, tmp_path)
    assert summary["reward_first"] < 0.5 < 0.9 < summary["reward_last"]


def test_evaluate_measures_the_saved_model_as_the_run_did_and_writes_nothing(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    summary = train(configure("run.steps=4"), tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    cfg = configure(f"model.name={tmp_path}/run/model")
    metrics = evaluate(cfg)
    assert metrics["accuracy"] == summary["accuracy_after"]
    known = {"accuracy", "accuracy_stderr", "pass@1", "completions", "prompts", "length", "missing", "reward"}
    assert set(metrics) == known
    assert sorted(tmp_path.rglob("*")) == before
    own = evaluate(configure("reward.verifiers={own:1}"), rewards={"own": lambda submission: 1.0})
    assert own["accuracy"] == 1.0


def test_evaluate_reports_pass_at_k_and_takes_its_own_sampling(configure: Configure):
    metrics = evaluate(
        configure("evaluation.samples=4", "evaluation.prompts=12", "evaluation.sampling={max_new_tokens:5}")
    )
    assert metrics["accuracy"] < metrics["pass@2"] < metrics["pass@4"] <= 1
    assert metrics["length"] <= 5
    greedy = [evaluate(configure("evaluation.sampling={temperature:0}", f"run.seed={seed}")) for seed in (1, 2)]
    assert greedy[0] == greedy[1]


def missing_for(texts: set[str]) -> Callable[[Submission], float]:
    """Raises where the text is one of these."""

    def judge(submission: Submission) -> float:
        if submission.text in texts:
            raise ValueError("no verdict on this one")
        return easy_rewards.starts_with_a_digit(submission)

    return judge


def samples(folder: Path, step: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples" / f"step_{step}.jsonl").read_text().splitlines()]


def test_a_missing_reward_leaves_the_statistics_of_the_rest_right(configure: Configure, tmp_path: Path):
    cfg = configure("run.steps=1", "reward.verifiers={own:1}", "evaluation.at_start=false", "evaluation.at_end=false")
    train(cfg, tmp_path / "whole", rewards={"own": easy_rewards.starts_with_a_digit})
    whole = samples(tmp_path / "whole", 1)
    lost = [0, 6]  # one of each group of four
    judge = missing_for({whole[place]["text"] for place in lost})
    train(cfg, tmp_path / "missing", rewards={"own": judge})
    found = samples(tmp_path / "missing", 1)
    assert [row["text"] for row in found] == [row["text"] for row in whole]
    for place, row in enumerate(found):
        if place in lost:
            assert row["reward"] is None and row["reward_parts"] == {"own": None} and row["advantage"] is None
            continue
        group = [other for number, other in enumerate(found) if number // 4 == place // 4 and number not in lost]
        rewards = [other["reward"] for other in group]
        mean = fmean(rewards)
        std = fmean((reward - mean) ** 2 for reward in rewards) ** 0.5
        expected = 0.0 if max(rewards) == min(rewards) else (row["reward"] - mean) / (std + 1e-6)
        assert row["reward"] == whole[place]["reward"]
        assert row["advantage"] == pytest.approx(expected, abs=1e-9)
    [row] = trained_rows(tmp_path / "missing")
    known = [one["reward"] for one in found if one["reward"] is not None]
    assert row["reward/mean"] == pytest.approx(fmean(known)) and row["reward/missing"] == 0.25
    assert (row["batch/missing_rewards"], row["batch/trained"], row["rewards/own/missing"]) == (0.25, 0.75, 2)


def test_too_many_missing_rewards_end_the_run_in_one_line(configure: Configure, tmp_path: Path):
    cfg = configure("run.steps=2", "reward.verifiers={own:1}", "reward.max_missing=0.1", "evaluation.at_start=false")
    with pytest.raises(TrainingError) as caught:
        train(cfg, tmp_path, rewards={"own": easy_rewards.sometimes_raises})
    line = str(caught.value)
    assert re.match(r"\d of 8 rewards are missing, more than reward.max_missing=0.1 allows: own: ", line)
    assert "no verdict on this one" in line and "\n" not in line
    assert read_rows(tmp_path) == []


def test_a_missing_reward_is_not_right_in_an_evaluation_but_does_not_end_it(configure: Configure):
    cfg = configure("reward.verifiers={own:1}")
    metrics = evaluate(cfg, rewards={"own": easy_rewards.always_raises})
    assert (metrics["accuracy"], metrics["missing"]) == (0.0, 1.0)


def failed(folder: Path, step: int) -> list[dict[str, Any]]:
    text = (folder / f"failed_step_{step}.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text  # which JSON lacks
    return [json.loads(line) for line in text.splitlines()]


def by_length(submission: Submission) -> float:
    return float(len(submission.text) % 3)


@pytest.mark.parametrize(("lr", "mixed"), [(1e30, "none"), (1e38, "bf16"), (1e30, "fp16")])
def test_a_run_that_diverges_stops_with_its_completions_written_out(
    configure: Configure, tmp_path: Path, lr: float, mixed: str
):
    overrides = (f"optimizer.lr={lr}", "optimizer.warmup_steps=0", f"runtime.mixed_precision={mixed}")
    cfg = configure("run.steps=4", "reward.verifiers={own:1}", *overrides)
    with pytest.raises(TrainingError, match=r"step 2: the (loss|gradient|sampler's log-probs) .*not finite") as caught:
        train(cfg, tmp_path, rewards={"own": by_length})
    assert "failed_step_2.jsonl" in str(caught.value) and "\n" not in str(caught.value)
    written = failed(tmp_path, 2)
    assert 0 < len(written) <= 8
    for row in written:
        assert row["prompt"][0]["content"].endswith("How many?")
        assert len(row["segments"][0]["sampled_ids"]) > 0
    assert [row["step"] for row in trained_rows(tmp_path)] == [1]
    assert not (tmp_path / "model").exists()


def test_only_the_completions_that_break_the_loss_are_written(configure: Configure, tmp_path: Path):
    without = ("run.steps=1", "evaluation.at_start=false", "evaluation.at_end=false")
    train(configure("run.record_groups=true", *without), tmp_path / "recorded")
    recording = GroupRecording(tmp_path / "recorded")
    groups = recording.read(1)
    assert groups is not None
    guilty = groups[1].completions[2]
    guilty.segments[0].advantages = [1e39] * guilty.num_sampled  # past the largest float32
    recording.write(1, groups)
    cfg = configure("source.kind=replay", f"source.path={tmp_path}/recorded", *without)
    with pytest.raises(TrainingError, match=r"step 1: the (loss|gradient) of optimizer step 1 is not finite") as caught:
        train(cfg, tmp_path / "run")
    assert "failed_step_1.jsonl" in str(caught.value)
    [row] = failed(tmp_path / "run", 1)
    assert row["segments"][0]["sampled_ids"] == guilty.segments[0].sampled_ids
    assert row["group"] == groups[1].id


def test_a_run_whose_source_cannot_be_built_leaves_nothing_open(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    closed: list[str] = []
    for kind in (Scorer, InPlaceSync, TorchEngine, LocalLearner, Monitor):
        monkeypatch.setattr(kind, "close", lambda self, *_: closed.append(type(self).__name__))
    monkeypatch.setattr(build, "build_source", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build.build_run(configure(), tmp_path, lambda: False, {})
    assert closed == ["Monitor", "Scorer", "InPlaceSync", "TorchEngine", "LocalLearner"]


def test_every_part_is_closed_whatever_fails_on_the_way(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = build.build_run(configure(), tmp_path, lambda: False, {})
    run.close("stopped")
    closed: list[str] = []

    def failing(self: Any, *_: Any) -> None:
        closed.append(type(self).__name__)
        raise OSError(type(self).__name__)

    for kind in (SyncSource, Scorer, InPlaceSync, TorchEngine, LocalLearner, Monitor):
        monkeypatch.setattr(kind, "close", failing)
    with pytest.raises(OSError, match="LocalLearner"):
        run.close("stopped")
    assert closed == ["Monitor", "SyncSource", "Scorer", "InPlaceSync", "TorchEngine", "LocalLearner"]


def test_weights_that_break_in_the_last_step_are_found_by_the_evaluation(configure: Configure, tmp_path: Path):
    overrides = ("optimizer.lr=1e38", "optimizer.warmup_steps=0", "run.steps=1", "evaluation.at_start=false")
    with pytest.raises(TrainingError, match=r"step 1: the sampler's log-probs of 6 of 6 completions are not finite"):
        train(configure("reward.verifiers={own:1}", *overrides), tmp_path, rewards={"own": by_length})
    assert not (tmp_path / "model").exists()


def test_what_is_printed_as_next_works_where_the_environment_is_not_activated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Path(sys.executable).with_name("shoal")
    monkeypatch.setenv("PATH", str(script.parent))
    assert command() == "shoal"
    monkeypatch.setenv("PATH", str(tmp_path))
    words = command().split()
    assert script.exists() == (len(words) == 1)
    assert Path(words[0]).resolve() == (script if script.exists() else Path(sys.executable)).resolve()
