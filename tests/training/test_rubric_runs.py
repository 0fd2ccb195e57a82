"""Runs whose reward is a judge's: learning, dying, resuming, and a budget that ends."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from judge_server import JudgeServer, Reply, between
from small_runs import Configure, Killed, kill_before, rows, trained_rows, weights

from shoal import load_config, train
from shoal.errors import BudgetError, TrainingError
from shoal.tasks.warm_start import warm_started_model

SHOAL = Path(sys.executable).with_name("shoal")


def digits(text: str) -> str:
    """Writes a criterion for one digit, by the question, and a useless one; grades how often an answer has a digit."""
    if "<response_1>" in text:
        digit = len(between(text, "question")) % 10
        merit = {"title": f"digit {digit}", "description": f"has {digit}"}
        flaw = {"title": "tilde", "description": "has ~"}  # no answer has it, so it tells nothing
        return json.dumps({"positive_rubrics": [merit], "negative_rubrics": [flaw]})
    digit = between(text, "criterion").partition("has ")[2]
    return json.dumps({"score": min(2, between(text, "answer_to_check").count(digit))})


@pytest.fixture
def rubric_run(configure: Configure, tmp_path: Path) -> Any:
    (tmp_path / "general.yaml").write_text("- {title: one, description: has 1}\n- {title: two, description: has 2}\n")

    def make(server: JudgeServer, *overrides: str, **keywords: Any) -> Any:
        cfg = configure("reward.rubric.adaptive=true", "reward.rubric.normalize=true", *overrides, **keywords)
        cfg.reward.verifiers = {"rubric": 1.0}
        cfg.reward.judge.base_url = server.url
        cfg.reward.judge.backoff = 0.01
        cfg.reward.rubric.general = str(tmp_path / "general.yaml")
        return cfg

    return make


def log(folder: Path) -> str:
    return (folder / "adaptive_rubrics.jsonl").read_text()


def test_a_run_with_adaptive_rubrics_that_died_repeats_itself(
    rubric_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with JudgeServer(digits) as server:
        train(rubric_run(server, "run.steps=6"), tmp_path / "whole")
        kill_before(monkeypatch, "train", 4)
        with pytest.raises(Killed):
            train(rubric_run(server, "run.steps=6"), tmp_path / "killed")
        before = len(server.bodies)
        train(rubric_run(server, "run.steps=6", resume=tmp_path / "killed"), tmp_path / "killed")
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert log(tmp_path / "killed") == log(tmp_path / "whole")
    assert len(server.bodies) > before  # it went on asking after what the cache knew
    trained = trained_rows(tmp_path / "whole")
    assert sum(row["rubric/added"] for row in trained) > 0 and sum(row["rubric/to_inactive"] for row in trained) > 0
    assert any(row["train/grad_norm"] > 0 for row in trained)


def test_a_spent_budget_saves_the_run_which_goes_on_as_if_it_had_not_stopped(rubric_run: Any, tmp_path: Path):
    prices = ("run.steps=5", "reward.judge.price_in=1000", "reward.judge.concurrency=1", "checkpoint.every=5")
    with JudgeServer(digits) as server:
        train(rubric_run(server, *prices), tmp_path / "whole")
        with pytest.raises(BudgetError) as caught:
            train(rubric_run(server, *prices, "reward.judge.budget=8"), tmp_path / "short")
        found = re.search(
            r"budget=8 dollars are spent: 8 for 8,000 tokens .* saved after step (\d) *: go on with shoal train "
            rf"resume={tmp_path / 'short'} reward.judge.budget=16",
            str(caught.value),
        )
        assert found and 0 < int(found[1]) < 5
        train(rubric_run(server, *prices, "reward.judge.budget=99", resume=tmp_path / "short"), tmp_path / "short")
    assert rows(tmp_path / "short") == rows(tmp_path / "whole")
    assert weights(tmp_path / "short") == weights(tmp_path / "whole")
    assert log(tmp_path / "short") == log(tmp_path / "whole")
    costs = [
        json.loads(line)["judge/cost_total"]
        for line in (tmp_path / "short" / "metrics.jsonl").read_text().splitlines()
        if "judge/cost_total" in line
    ]
    assert costs == sorted(costs) and costs[-1] > 8  # what was spent before the stop counts


def test_verdicts_that_cannot_be_had_stop_the_run_above_max_missing_and_not_below(rubric_run: Any, tmp_path: Path):
    def failing(text: str) -> Reply | str:
        return Reply(status=400, body="no") if "<response_1>" in text or "has 2" in text else digits(text)

    with JudgeServer(failing) as server:
        with pytest.raises(
            TrainingError, match=r"8 of 8 rewards are missing.*rubric: the judge answered with status 400"
        ):
            train(rubric_run(server, "run.steps=2"), tmp_path / "stopped")
        train(rubric_run(server, "run.steps=2", "reward.max_missing=1"), tmp_path / "going_on")
    assert [row["rewards/missing"] for row in trained_rows(tmp_path / "going_on")] == [1, 1]


def test_the_best_model_of_a_judged_run_is_the_one_with_the_highest_mean_reward(rubric_run: Any, tmp_path: Path):
    with JudgeServer(digits) as server:
        summary = train(rubric_run(server, "run.steps=4", "evaluation.every=1"), tmp_path / "run")
    rewards = {row["step"]: row["eval/reward"] for row in rows(tmp_path / "run") if "eval/reward" in row}
    assert len(rewards) == 5 and len(set(rewards.values())) > 1
    assert summary["best_by"] == "reward"
    assert summary["best_step"] == max(rewards, key=lambda step: rewards[step])
    assert (tmp_path / "run" / "best").is_dir() == (summary["best_step"] > 0)


@pytest.mark.slow
def test_a_rubric_reward_raises_the_rubrics_score_on_the_built_in_task(tmp_path: Path):
    """The criterion asks for a short thinking: no step (2), one (1), more (0). The model starts with one a change."""

    def shortness(text: str) -> str:
        steps = between(text, "answer_to_check").partition("<think>")[2].partition("</think>")[0].count("=")
        return json.dumps({"score": max(0, 2 - steps)})

    (tmp_path / "general.yaml").write_text("- {title: short, description: There is little thinking.}\n")
    overrides = (
        "run.steps=25", "run.prompts_per_step=8", "run.group_size=8", "evaluation.prompts=32", "monitor.progress=lines",
        "monitor.curve=false", "monitor.tensorboard=false", "sampling.max_new_tokens=30", "reward.verifiers.rubric=1",
        f"reward.rubric.general={tmp_path / 'general.yaml'}",
    )  # fmt: skip
    with JudgeServer(shortness) as server:
        cfg = load_config("story", list(overrides))
        cfg.reward.judge.base_url = server.url
        summary = train(cfg, tmp_path / "run")
    trained = [row for row in rows(tmp_path / "run") if "rubric/short/mean" in row]
    first, last = (fmean(row["rubric/short/mean"] for row in part) for part in (trained[:5], trained[-5:]))
    assert last > first + 0.2, (first, last)
    before, after = (
        row["eval/reward"] for row in rows(tmp_path / "run") if "eval/reward" in row and row["step"] in (0, 25)
    )
    assert after > before + 0.2, (before, after)  # on held-out prompts
    assert summary["accuracy_after"] > summary["accuracy_before"]  # full marks of the rubric


@pytest.mark.slow
def test_the_rubric_preset_runs_a_smoke_test_on_local_data_without_a_judge(tmp_path: Path, tiny_model: Path):
    warm_started_model()
    problems = [{"question": f"Ada has {n} cats How many?", "answer": f"#### {n}"} for n in range(1, 9)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    words = [
        "train", "--config-name", "rubric", "--smoke-test", f"model={tiny_model}", "data.path=data.jsonl",
        "runtime.target=cpu", "run.name=one",
    ]  # fmt: skip
    done = subprocess.run([SHOAL, *words], cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    trained = [row for row in rows(tmp_path / "outputs" / "one") if "rubric/Factual/mean" in row]
    assert [row["step"] for row in trained] == [1, 2] and "made up" in done.stderr
    assert "adaptive_rubrics.jsonl" in {path.name for path in (tmp_path / "outputs" / "one").iterdir()}


def test_rows_may_name_the_rubric_as_their_verifier_and_bring_criteria(rubric_run: Any, tmp_path: Path):
    truth = {"query": "Say it.", "rubrics": [{"title": "three", "description": "has 3", "weight": 2}]}
    message = {"role": "user", "content": "Ada has 3 cats How many?"}
    row = {"messages": [message], "ground_truth": truth, "verifiers": ["rubric"]}
    (tmp_path / "data.jsonl").write_text(json.dumps(row) + "\n")
    with JudgeServer(digits) as server:
        cfg = rubric_run(server, "run.steps=1", "evaluation.at_start=false", "evaluation.at_end=false")
        cfg.data.task, cfg.data.path, cfg.reward.verifiers, cfg.reward.rubric.general = (
            "messages", str(tmp_path / "data.jsonl"), {}, None,
        )  # fmt: skip
        train(cfg, tmp_path / "run")
    logged = [json.loads(line) for line in log(tmp_path / "run").splitlines()]
    assert {row["question"] for row in logged} == {"Say it."}
    assert logged[0]["criteria"][0]["weight"] == 2 and logged[0]["criteria"][0]["origin"] == "static"
