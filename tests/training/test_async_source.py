"""Asynchronous runs: the bound holds, each prompt is trained once, what is slow is waited for, failures have words."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any

import pytest
from apart import ApartEngine, apart  # noqa: F401 - a fixture
from small_runs import Configure, Killed, kill_before, rows, trained_rows, weights

from shoal import train
from shoal.config import ShoalConfig
from shoal.engines.base import Request
from shoal.errors import ConfigError, EngineError, TrainingError
from shoal.learners.local import LocalLearner
from shoal.monitor.progress import ProgressDisplay
from shoal.rollout.tool_calls import Tool, ToolCall
from shoal.training.async_source import AsyncSource
from shoal.training.recording import GroupRecording
from shoal.training.state import Run
from shoal.types import Group, StopReason

Ahead = Callable[..., ShoalConfig]
STEPS = 8
HELD = "held back"


@pytest.fixture
def ahead(configure: Configure, apart: list[ApartEngine]) -> Ahead:  # noqa: F811
    """A small asynchronous configuration; what stands in for the server's engine is `apart`."""
    groups = ("source=async", "engine=vllm_server", "weight_sync=broadcast")
    small = (f"run.steps={STEPS}", "run.record_groups=true", "source.max_staleness=2")
    return lambda *overrides, resume=None: configure(*groups, *small, *overrides, resume=resume)


def recorded(folder: Path, steps: int = STEPS) -> list[list[Group]]:
    found = [GroupRecording(folder).read(step) for step in range(1, steps + 1)]
    assert all(groups is not None for groups in found)
    return found  # type: ignore[return-value]


def names(steps: list[list[Group]]) -> list[tuple[str, int]]:
    return [(group.id, group.epoch) for groups in steps for group in groups]


def ages(steps: list[list[Group]]) -> list[int]:
    return [step - one.first_version for step, groups in enumerate(steps) for g in groups for one in g.completions]


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()} & {"rollouts", "scoring", "watchdog"}


@pytest.mark.parametrize(("lead", "order"), [(0, "oldest"), (1, "oldest"), (2, "first_come")])
def test_no_completion_is_older_than_the_bound_and_every_prompt_is_trained_once(
    ahead: Ahead, tmp_path: Path, lead: int, order: str
):
    train(ahead(f"source.lead={lead}", f"source.order={order}"), tmp_path / "run")
    steps = recorded(tmp_path / "run")
    assert max(ages(steps)) <= 2
    assert (max(ages(steps)) > 0) == (lead > 0)
    assert sorted(name for name in names(steps) if name[1] == 0) == [(f"story/train/{n}", 0) for n in range(9)]
    assert len(set(names(steps))) == 2 * STEPS
    assert not threads()
    metrics = trained_rows(tmp_path / "run")[-1]
    assert metrics["async/staleness_oldest"] <= 2
    assert {"async/staleness_mean", "async/slots_free", "async/slow_share_trained"} <= metrics.keys()


def test_groups_that_start_together_go_to_the_engine_in_one_submission(
    ahead: Ahead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sizes: list[int] = []
    submit = ApartEngine.submit

    def counted(self: ApartEngine, requests: Any) -> None:
        sizes.append(len(requests))
        submit(self, requests)

    monkeypatch.setattr(ApartEngine, "submit", counted)
    train(ahead("evaluation.at_start=false", "evaluation.at_end=false", "evaluation.every=0"), tmp_path / "run")
    assert sizes[0] == 2 * 2 * 4  # as many groups as there are slots
    assert set(sizes[1:]) == {2 * 4}  # those that a publication frees


def hold_back(monkeypatch: pytest.MonkeyPatch, until: float) -> None:
    """A completion of the first prompt does not finish before so many groups were started. Data are not shuffled."""
    made = ApartEngine.__init__

    def init(self: ApartEngine, *arguments: Any) -> None:
        made(self, *arguments)

        def held(request: Request) -> bool:
            own = [seed for group, seed in self.log if group == request.group]
            started = len({group for group, _ in self.log if "/train/" in group})
            return request.group == "story/train/0/0" and request.seed == own[3] and started < until

        self.held = held

    monkeypatch.setattr(ApartEngine, "__init__", init)


def test_a_slow_group_is_waited_for_and_trained_on_within_the_bound(
    ahead: Ahead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    hold_back(monkeypatch, until=7)
    train(ahead("data.shuffle=false"), tmp_path / "run")
    steps = recorded(tmp_path / "run")
    [step] = [number for number, groups in enumerate(steps) if ("story/train/0", 0) in names([groups])]
    assert step in (1, 2)  # others passed it; it was not thrown away
    assert max(ages(steps)) <= 2


def test_at_the_bound_a_group_can_be_cut_and_its_unfinished_completions_are_not_trained_on(
    ahead: Ahead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    hold_back(monkeypatch, until=inf)
    train(ahead("data.shuffle=false", "source.at_bound=cut"), tmp_path / "run")
    steps = recorded(tmp_path / "run")
    found = {(group.id, group.epoch): (step, group) for step, groups in enumerate(steps) for group in groups}
    step, group = found["story/train/0", 0]
    assert step == 2  # the last that the bound allows
    assert [one.info.get("cut", False) for one in group.completions] == [False, False, False, True]
    assert group.completions[3].stop_reason == StopReason.LENGTH
    assert group.completions[3].reward is not None
    assert not any(any(segment.mask) for segment in group.completions[3].segments)
    assert sum(row["async/cut"] for row in trained_rows(tmp_path / "run")) == 1


def test_groups_that_fail_give_their_slots_back_and_ten_batches_of_them_end_the_run(ahead: Ahead, tmp_path: Path):
    def broken(submission: Any) -> float:
        raise ValueError("no judge today")

    cfg = ahead("reward.max_missing=1")
    cfg.reward.verifiers = {}
    with pytest.raises(TrainingError, match=r"20 groups in a row, 10 batches' worth.*0 of 4 rewards of group \d+"):
        train(cfg, tmp_path / "run", rewards={"broken": broken})
    assert not threads()


def test_a_group_lives_on_with_two_known_rewards_and_not_with_one(
    ahead: Ahead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    known = {"story/train/0": 2, "story/train/1": 1}
    sort_in = AsyncSource._sort_in

    def lose_rewards(self: AsyncSource, number: int, group: Group) -> None:
        for completion in group.completions[known.get(group.id, 4) :]:
            completion.reward = None
        sort_in(self, number, group)

    monkeypatch.setattr(AsyncSource, "_sort_in", lose_rewards)
    train(ahead("data.shuffle=false"), tmp_path / "run")
    steps = recorded(tmp_path / "run")
    of = {group.id: len(group.known_rewards) for groups in steps for group in groups}
    assert of == {f"story/train/{n}": known.get(f"story/train/{n}", 4) for n in range(9) if n != 1}
    # Eight of nine prompts can be trained on in each of two epochs: the other one gives its slot back in both.
    assert len(set(names(steps))) == 2 * STEPS
    assert sum(row["async/failed"] for row in trained_rows(tmp_path / "run")) == 2


def test_refilling_replaces_groups_of_equal_rewards_without_waiting_for_a_round(ahead: Ahead, tmp_path: Path):
    calls = iter(range(10**6))
    cfg = ahead("algorithm.zero_variance=refill")
    cfg.reward.verifiers = {}
    train(cfg, tmp_path / "run", rewards={"every_other": lambda submission: float(next(calls) % 8 == 0)})
    steps = recorded(tmp_path / "run")
    assert all(not group.zero_variance for groups in steps for group in groups)
    assert [len(groups) for groups in steps] == [2] * STEPS
    assert sum(row["async/filtered"] for row in trained_rows(tmp_path / "run")) > 4


def test_an_engine_that_fails_ends_the_run_with_its_words_and_no_thread_is_left(
    ahead: Ahead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    poll = ApartEngine.poll

    def dying(self: ApartEngine, timeout: float) -> Any:
        if len({group for group, _ in self.log}) > 8:
            raise EngineError("the engine is gone")
        return poll(self, timeout)

    monkeypatch.setattr(ApartEngine, "poll", dying)
    with pytest.raises(EngineError, match="the engine is gone"):
        train(ahead(), tmp_path / "run")
    assert not threads()


def test_an_exception_of_the_learner_ends_the_rollouts_too(
    ahead: Ahead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    kill_before(monkeypatch, "train", 4)
    with pytest.raises(Killed):
        train(ahead(), tmp_path / "run")
    assert not threads()


def test_a_run_that_was_killed_and_resumed_loses_no_prompt_and_trains_none_twice(
    ahead: Ahead,
    apart: list[ApartEngine],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    kill_before(monkeypatch, "train", 6)
    with pytest.raises(Killed):
        train(ahead("source.lead=2"), tmp_path / "run")
    train(ahead("source.lead=2", resume=tmp_path / "run"), tmp_path / "run")
    steps = recorded(tmp_path / "run")
    assert len(set(names(steps))) == 2 * STEPS
    assert sorted(name for name in names(steps) if name[1] == 0) == [(f"story/train/{n}", 0) for n in range(9)]
    assert max(ages(steps)) <= 2
    assert [row["step"] for row in trained_rows(tmp_path / "run")] == list(range(1, STEPS + 1))
    # What was under way is asked again with the seeds that it had.
    first, second = ({(group, seed) for group, seed in one.log} for one in apart)
    again = {group for group, _ in second} & {group for group, _ in first}
    assert again
    assert {pair for pair in second if pair[0] in again} <= first


def test_finished_groups_are_kept_with_their_versions_over_a_resume(
    ahead: Ahead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    saved: list[int] = []
    whole = Run.save

    def save_when_some_are_ready(run: Run) -> Path:
        source: Any = run.source
        with source.changed:
            assert source.changed.wait_for(lambda: source.ready and not source.under_way, 60)
            saved[:] = sorted(one.oldest for one in source.ready.values())
        return whole(run)

    monkeypatch.setattr(Run, "save", save_when_some_are_ready)
    kill_before(monkeypatch, "train", 3)
    with pytest.raises(Killed):
        train(ahead(), tmp_path / "run")
    kept: list[int] = []
    restore = Run.restore

    def look(run: Run) -> None:
        restore(run)
        kept[:] = sorted(one.oldest for one in run.source.ready.values())  # type: ignore[attr-defined]

    monkeypatch.setattr(Run, "save", whole)
    monkeypatch.setattr(Run, "restore", look)
    train(ahead(resume=tmp_path / "run"), tmp_path / "run")
    assert kept == saved != []
    assert max(ages(recorded(tmp_path / "run"))) <= 2


def test_an_evaluation_shares_the_engine_and_is_by_one_version(
    ahead: Ahead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[set[tuple[int, int]]] = []
    whole = Run.evaluate

    def evaluate(run: Run) -> dict[str, float]:
        metrics = whole(run)
        seen.append({version for g in run.samples or [] for one in g.completions for version in one.versions})
        return metrics

    monkeypatch.setattr(Run, "evaluate", evaluate)
    train(ahead("evaluation.every=3", "evaluation.at_start=true", "evaluation.at_end=true"), tmp_path / "run")
    assert seen == [{(0, 0)}, {(0, 3)}, {(0, 6)}, {(0, STEPS)}]


TURNS = ("environment.kind=test_own_environment:Digits", "environment.max_turns=2")
TOOLS = ("environment.kind=tools", "environment.tools=[calculator]", "environment.max_turns=2")


@pytest.mark.parametrize("turns", [(), TURNS, TOOLS], ids=["single turn", "two turns", "tools"])
def test_without_staleness_it_is_sync_to_the_bit(
    configure: Configure, tmp_path: Path, turns: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    called: list[str] = []

    def calls(text: str) -> list[ToolCall]:  # a random model makes none
        called.append(text)
        return [ToolCall("calculator", {"expression": f"{len(text)} + 1"})]

    async def at_once(tool: Tool, arguments: dict[str, Any], timeout: float) -> Any:
        # In a thread of its own, chance would say which completions are decoded together: that rounds differently.
        return tool.function(**arguments)

    monkeypatch.setattr("shoal.rollout.tools.find_calls", calls)
    monkeypatch.setattr("shoal.rollout.tool_calls._call", at_once)
    for kind in ("sync", "async"):
        quick = ("evaluation.every=0", "evaluation.at_start=false", "checkpoint.every=0", "checkpoint.keep_best=false")
        cfg = configure("run.steps=20", f"source.kind={kind}", "source.max_staleness=0", *quick, *turns)
        cfg.reward.verifiers = {} if turns == TURNS else cfg.reward.verifiers
        train(cfg, tmp_path / kind)
    assert bool(called) == (turns == TOOLS)
    assert rows(tmp_path / "async") == rows(tmp_path / "sync")
    assert weights(tmp_path / "async") == weights(tmp_path / "sync")


def test_conversations_are_rolled_out_ahead_too(ahead: Ahead, tmp_path: Path):
    cfg = ahead(*TURNS)
    cfg.reward.verifiers = {}
    train(cfg, tmp_path / "run")
    steps = recorded(tmp_path / "run")
    assert 0 < max(ages(steps)) <= 2
    assert len(set(names(steps))) == 2 * STEPS


def test_a_signal_ends_a_wait_and_the_resumed_run_trains_on_what_was_waited_for(
    ahead: Ahead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    waits: list[str] = []
    told = AsyncSource._waiting

    def wait_and_stop(self: AsyncSource, version: int) -> Any:
        found = told(self, version)
        if self._due(version):
            os.kill(os.getpid(), signal.SIGTERM)
            waits.append(self.standing())
        return found

    with monkeypatch.context() as once:
        hold_back(once, until=inf)
        once.setattr(AsyncSource, "_waiting", wait_and_stop)
        summary = train(ahead("data.shuffle=false"), tmp_path / "run")
    assert summary["status"] == "stopped"
    assert not threads()
    assert waits
    train(ahead("data.shuffle=false", resume=tmp_path / "run"), tmp_path / "run")
    steps = recorded(tmp_path / "run")
    assert ("story/train/0", 0) in names(steps)
    assert len(set(names(steps))) == 2 * STEPS
    assert max(ages(steps)) <= 2


def test_the_wait_for_a_group_that_is_due_names_it(ahead: Ahead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    phase = ProgressDisplay.phase

    def note(self: ProgressDisplay, name: str) -> None:
        said.append(name)
        phase(self, name)

    monkeypatch.setattr(ProgressDisplay, "phase", note)
    hold_back(monkeypatch, until=inf)
    train(ahead("data.shuffle=false", "source.at_bound=cut"), tmp_path / "run")
    assert "the learner waits for group 0 (version 0, 3 of 4 done, due)" in said


def test_the_learner_goes_on_while_weights_are_on_their_way_and_writes_them_only_after(
    ahead: Ahead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A publication of version 3 that lasts until the learner wants to write version 4."""
    log: list[str] = []
    wants_to_write = threading.Event()
    take, settle, backward = ApartEngine.take, Run.settle, LocalLearner._backward

    def slow_take(self: ApartEngine, learner: Any, version: int) -> None:
        if version == 3:
            assert wants_to_write.wait(30)
        take(self, learner, version)
        log.append(f"published {version}")

    def noted_settle(run: Run) -> dict[str, float]:
        if run.parts.learner.version == 3 and run.under_way is not None:
            log.append("wants to write")
            wants_to_write.set()
        return settle(run)

    def noted_backward(self: LocalLearner, *arguments: Any) -> Any:
        log.append(f"backward {self.version}")
        return backward(self, *arguments)

    monkeypatch.setattr(ApartEngine, "take", slow_take)
    monkeypatch.setattr(Run, "settle", noted_settle)
    monkeypatch.setattr(LocalLearner, "_backward", noted_backward)
    train(ahead("evaluation.every=0", "checkpoint.every=0"), tmp_path / "run")
    assert log.index("backward 3") < log.index("wants to write") < log.index("published 3")
    assert max(ages(recorded(tmp_path / "run"))) <= 2
    assert {"wait/learner_publish"} <= trained_rows(tmp_path / "run")[0].keys()
    assert "publisher" not in {thread.name.split("_")[0] for thread in threading.enumerate()}


def test_a_publication_that_never_ends_ends_the_run_at_its_deadline(
    ahead: Ahead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    take, over = ApartEngine.take, threading.Event()

    def hanging(self: ApartEngine, learner: Any, version: int) -> None:
        if version == 3:
            over.wait(60)
        take(self, learner, version)

    monkeypatch.setattr(ApartEngine, "take", hanging)
    monkeypatch.setattr("shoal.training.state.PARTS", 0.2)
    quick = ("evaluation.every=0", "checkpoint.every=0", "weight_sync.timeout=1")
    with pytest.raises(EngineError, match=r"publication of version 3 has not ended after 0\.2 s .*; step 4: .* at the"):
        train(ahead(*quick), tmp_path / "run")
    over.set()
    assert not threads()


def test_a_publication_that_fails_on_its_way_ends_the_run(
    ahead: Ahead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    take = ApartEngine.take

    def failing(self: ApartEngine, learner: Any, version: int) -> None:
        if version == 3:
            raise EngineError("version 3 did not get through")
        take(self, learner, version)

    monkeypatch.setattr(ApartEngine, "take", failing)
    with pytest.raises(EngineError, match="version 3 did not get through"):
        train(ahead("evaluation.every=0", "checkpoint.every=0"), tmp_path / "run")
    assert not threads()


def test_a_run_with_prompts_under_way_is_not_resumed_without_staleness(
    ahead: Ahead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    hold_back(monkeypatch, until=inf)  # so that one is under way at the checkpoint of step 2
    kill_before(monkeypatch, "train", 3)
    with pytest.raises(Killed):
        train(ahead("data.shuffle=false", "source.max_staleness=4"), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"source\.max_staleness=0: the checkpoint has prompts that were under way"):
        train(ahead("data.shuffle=false", "source.max_staleness=0", resume=tmp_path / "run"), tmp_path / "run")
