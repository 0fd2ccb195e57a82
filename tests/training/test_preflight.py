"""The start-up check finds what would make a run learn nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import easy_rewards
import psutil
import pytest
import torch
from small_runs import Configure, rows

from shoal import Submission, train
from shoal.api import check, refuse_failed
from shoal.build import build_parts
from shoal.config import ShoalConfig
from shoal.engines.base import EngineOutput, Request
from shoal.errors import ConfigError, TrainingError
from shoal.monitor.rows import read_rows
from shoal.runtime import Runtime
from shoal.training.parts import Parts
from shoal.training.preflight import (
    CheckResult,
    check_disk,
    check_format,
    check_logprobs,
    check_memory,
    check_rewards,
    check_verifiers,
    longest_prompt,
    run_checks,
)
from shoal.types import StopReason

Build = Callable[..., Parts]
CPU = Runtime(torch.device("cpu"), torch.float32, None, "sdpa", [])


@pytest.fixture
def build() -> Iterator[Build]:
    built: list[Parts] = []

    def make(cfg: ShoalConfig, **rewards: Callable[[Submission], float]) -> Parts:
        built.append(build_parts(cfg, rewards))
        built[-1].sync.publish(0).wait()
        return built[-1]

    yield make
    for parts in built:
        parts.close()


def test_all_checks_pass_on_the_built_in_task(configure: Configure, build: Build, tmp_path: Path):
    cfg = configure("run.preflight=true")
    cfg.reward.verifiers = {}
    results = run_checks(cfg, build(cfg), tmp_path)
    assert [(result.name, result.ok) for result in results] == [
        ("disk", True),
        ("memory", True),
        ("verifiers", True),
        ("rewards", True),
        ("log-probs", True),
    ]


def test_the_tasks_own_verifiers_must_find_its_demonstrated_answer_right(configure: Configure, build: Build):
    cfg = configure()
    cfg.reward.verifiers = {}
    parts = build(cfg)
    assert check_rewards(parts.task, parts.scorer).ok is True
    parts.task.demonstrate = lambda prompt: "in another form"
    result = check_rewards(parts.task, parts.scorer)
    assert result.ok is False and result.detail.startswith("a right answer scores 0.0, a wrong one 0.0")


def boxed(submission: Submission) -> float:
    return float(f"\\boxed{{{submission.ground_truth}}}" in submission.text)


@pytest.mark.parametrize(
    ("function", "ok", "detail"),
    [
        (boxed, True, "a right answer scores 1.0, a wrong one 0.0 ('\\\\boxed{"),
        (easy_rewards.always_zero, None, "a right answer scores 0.0, a wrong one 0.0"),
        (lambda submission: 1.0, None, "a right answer scores 1.0, a wrong one 1.0"),
        (lambda submission: -float(submission.ground_truth in submission.text), None, "a right answer scores -1.0, a"),
        (easy_rewards.always_raises, False, "no score can be had: own: "),
        (lambda submission: float("nan"), False, "no score can be had: own: gave nan"),
    ],
)
def test_a_function_of_ones_own_may_reward_something_else_than_the_right_answer(
    configure: Configure, build: Build, function: Any, ok: bool, detail: str
):
    parts = build(configure("reward.verifiers={own:1}"), own=function)
    result = check_rewards(parts.task, parts.scorer)
    assert result.ok is ok and result.detail.startswith(detail), result


@pytest.mark.parametrize(
    ("verifiers", "ok"),
    [
        ("{exact_answer:1}", True),
        ("{exact_answer:1,own:1}", True),  # the answer's share is looked at by itself
        ("{gsm8k_torchrl:-1,own:1}", False),  # turned round: no answer scores above a wrong one
        ("{max_length:1}", None),
    ],
)
def test_verifiers_of_answers_must_tell_right_from_wrong_whatever_is_rewarded_beside(
    configure: Configure, build: Build, verifiers: str, ok: bool | None
):
    own = {"own": lambda submission: -float(len(submission.text))} if "own" in verifiers else {}
    cfg = configure(f"reward.verifiers={verifiers}")
    parts = build(cfg, **own)
    parts.task.train[0].ground_truth = "7"
    if "max_length" in verifiers:
        parts.task.train[0].ground_truth = 0
    assert check_rewards(parts.task, parts.scorer).ok is ok


def test_the_check_lists_which_verifier_judges_how_many_prompts(configure: Configure, build: Build, tmp_path: Path):
    cfg = configure("reward.verifiers={starts_with_a_digit:0.5,own:1}")
    cfg.reward.options = {"gsm8k": {"compat": True}}
    parts = build(cfg, own=lambda submission: 1.0)
    for prompt in parts.task.train[:3]:
        prompt.verifiers = ["gsm8k", "own"]
    result = check_verifiers(parts.task, parts.scorer)
    assert (result.ok, result.detail) == (
        True,
        "own judges all 9 prompts (weight 1); starts_with_a_digit judges 6 of 9 prompts (weight 0.5); gsm8k judges 3 "
        "of 9 prompts (weight 1)",
    )
    cfg.reward.options = {"max_length": {"scale": 10}}
    assert "reward.options.max_length has no effect" in check_verifiers(parts.task, parts.scorer).detail
    cfg.reward.options = {}
    assert check_verifiers(parts.task, parts.scorer).ok is True


def test_a_ground_truth_that_cannot_be_written_as_an_answer_is_no_failure(configure: Configure, build: Build):
    parts = build(configure("reward.verifiers={own:1}"), own=lambda submission: 0.0)
    parts.task.demonstrate = None
    parts.task.train[0].ground_truth = {"instruction_id_list": []}
    result = check_rewards(parts.task, parts.scorer)
    assert (result.ok, result.detail) == (
        None,
        "no right answer is known that could be tried; a wrong one scores 0.0",
    )


def test_a_task_without_a_known_right_answer_is_no_failure(configure: Configure, build: Build):
    parts = build(configure("reward.verifiers={own:1}"), own=easy_rewards.always_zero)
    parts.task.demonstrate = None
    assert check_rewards(parts.task, parts.scorer).ok is None


def test_what_a_verifier_that_the_rows_name_needs_is_opened_at_the_start(configure: Configure):
    cfg = configure("data.verifiers=[code]", "reward.code.url=http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"reward\.code\.url: .*; start one with `shoal serve code"):
        build_parts(cfg, {})
    cfg.reward.verify = False  # nobody asks it
    build_parts(cfg, {}).close()


def test_a_sampler_that_computes_otherwise_than_the_learner_fails(
    configure: Configure, build: Build, monkeypatch: pytest.MonkeyPatch
):
    cfg = configure()
    parts = build(cfg)
    assert check_logprobs(cfg, parts, 1e-4).ok is True
    cfg.sampling.temperature = 0.7  # both apply it
    assert check_logprobs(cfg, parts, 1e-4).ok is True
    right = parts.learner.logprobs
    monkeypatch.setattr(parts.learner, "logprobs", lambda segments, temperature: right(segments, 1.0))
    result = check_logprobs(cfg, parts, 1e-4)
    assert result.ok is False and "(allowed: 1.0e-04)" in result.detail


def test_an_engine_that_samples_nothing_is_named(configure: Configure, build: Build, monkeypatch: pytest.MonkeyPatch):
    cfg = configure()
    parts = build(cfg)

    submit = parts.engine.submit

    def fail(requests: list[Request]) -> None:
        submit(requests)
        parts.engine.abort([request.id for request in requests])

    def failed(timeout: float) -> list[EngineOutput]:
        return [EngineOutput(one.request_id, [], [], StopReason.ERROR) for one in poll(timeout)]

    poll = parts.engine.poll
    monkeypatch.setattr(parts.engine, "submit", fail)
    monkeypatch.setattr(parts.engine, "poll", failed)
    result = check_logprobs(cfg, parts, 1e-4)
    assert result.ok is False and "sampled no token: its completions ended with error" in result.detail


@pytest.mark.parametrize("key", ["top_p", "top_k"])
def test_where_the_sampler_cuts_its_distribution_the_check_says_so_and_does_not_judge(
    configure: Configure, build: Build, key: str
):
    cfg = configure(f"sampling.{key}={0.5 if key == 'top_p' else 3}")
    result = check_logprobs(cfg, build(cfg), 1e-4)
    assert result.ok is None and "algorithm.correction" in result.detail


def test_the_checks_own_tokens_are_not_the_first_steps(configure: Configure, build: Build, tmp_path: Path):
    cfg = configure()
    parts = build(cfg)
    run_checks(cfg, parts, tmp_path)
    assert parts.engine.statistics()["tokens"] == 0


def test_a_plan_larger_than_the_memory_fails_and_names_the_largest_part():
    free = psutil.virtual_memory().available
    result = check_memory({"weights": 10, "activations": 2 * free}, CPU)
    assert result.ok is False and "most: activations" in result.detail
    assert check_memory({"weights": 10}, CPU).ok is True


def test_a_cache_that_long_completions_alone_would_fill_is_a_warning_on_a_cpu():
    free = psutil.virtual_memory().available
    result = check_memory({"weights": 10, "kv_cache": 2 * free}, CPU)
    assert result.ok is None and "engine.max_cache_tokens" in result.detail
    assert check_memory({"weights": 2 * free, "kv_cache": 2 * free}, CPU).ok is False


def test_the_cache_is_planned_for_the_longest_prompt_where_nothing_is_added_to_it(configure: Configure, build: Build):
    cfg = configure("data.max_prompt_tokens=500")
    task = build(cfg).task
    most = max(len(prompt.token_ids) for prompt in (*task.train, *task.evaluation))
    assert longest_prompt(cfg, task) == most < 500
    cfg.environment.kind = "tools"
    assert longest_prompt(cfg, task) is None


def test_room_is_needed_for_every_checkpoint_that_is_kept(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cfg = configure("checkpoint.keep_last=3")
    folder = tmp_path / "not" / "there" / "yet"
    usage = type("Usage", (), {"free": 600})
    monkeypatch.setattr("shoal.training.preflight.shutil.disk_usage", lambda path: usage)
    assert check_disk(cfg, folder, 100).ok is True  # three kept, one being written, the best and the final model
    assert check_disk(cfg, folder, 101).ok is False


def test_failed_checks_are_one_line_and_skipped_ones_do_not_count():
    passed, skipped = CheckResult("disk", True, "room"), CheckResult("rewards", None, "not tried")
    refuse_failed([passed, skipped])
    with pytest.raises(TrainingError) as caught:
        refuse_failed([passed, CheckResult("memory", False, "too little"), CheckResult("rewards", False, "equal")])
    assert str(caught.value) == (
        "start-up check: memory: too little; rewards: equal (run.preflight=false starts all the same)"
    )


def test_a_run_with_a_broken_reward_does_not_start_and_check_says_why(configure: Configure, tmp_path: Path):
    cfg = configure("run.preflight=true", "run.steps=1", "reward.verifiers={exact_answer:-1}")
    with pytest.raises(TrainingError, match=r"start-up check: rewards: a right answer scores -1\.0"):
        train(cfg, tmp_path)
    assert read_rows(tmp_path) == []
    assert [result.name for result in check(cfg) if result.ok is False] == ["rewards"]
    cfg.run.preflight = False
    assert train(cfg, tmp_path)["steps"] == 1


def test_the_check_changes_nothing_in_the_run_that_follows(configure: Configure, tmp_path: Path):
    lora = ("model.train=lora", "model.lora.dropout=0.2", "run.steps=2")
    train(configure("run.preflight=true", *lora), tmp_path / "checked")
    train(configure("run.preflight=false", *lora), tmp_path / "unchecked")
    assert rows(tmp_path / "checked") == rows(tmp_path / "unchecked")


def test_the_disk_plan_of_an_adapter_leaves_the_base_out(configure: Configure, build: Build, tmp_path: Path):
    def planned(*overrides: str) -> float:
        cfg = configure(*overrides)
        disk = run_checks(cfg, build(cfg), tmp_path)[0]
        return float(disk.detail.split()[0])

    def sizes(cfg: ShoalConfig) -> dict[str, int]:
        return {"weights": 2**34, "optimizer": 2**20, "master": 0}

    assert isinstance(planned(), float)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shoal.training.preflight.estimate", lambda cfg, *_: sizes(cfg))
        assert planned() > 64
        assert planned("model.train=lora", "model.lora.r=2") < 0.1


def test_an_answer_in_the_rewarded_format_reaches_the_verifier(configure: Configure, build: Build):
    parts = build(configure("reward.format.pattern=think_answer"))
    result = check_format(parts)
    assert result and result.ok is True and "scores 1.0" in result.detail


def test_tags_that_are_special_tokens_reach_the_verifier_and_end_tokens_do_not(configure: Configure, build: Build):
    parts = build(configure("reward.format.pattern=think_answer"))
    tokenizer = parts.policy.tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>", "<answer>", "</answer>"]})
    ids = tokenizer("<think>a</think><answer>b</answer>", add_special_tokens=False)["input_ids"]
    assert parts.decode([*ids, tokenizer.eos_token_id]) == "<think><unk></think><answer><unk></answer>"
    result = check_format(parts)
    assert result and result.ok is True


def test_tags_that_are_lost_on_the_way_to_the_verifier_fail_the_check(configure: Configure, build: Build):
    parts = build(configure("reward.format.pattern=think_answer"))
    decode = parts.decode
    parts.decode = lambda ids: decode(ids).replace("<think>", "")
    result = check_format(parts)
    assert result and result.ok is True  # the opening tag may stand in the prompt
    parts.decode = lambda ids: decode(ids).replace("</answer>", "")
    result = check_format(parts)
    assert result and result.ok is False and "which scores 0.0" in result.detail


def test_nothing_is_claimed_of_a_format_that_is_not_known(configure: Configure, build: Build):
    result = check_format(build(configure("reward.format.pattern='Zz+ .* Yy+'")))
    assert result and result.ok is None
    assert check_format(build(configure())) is None
