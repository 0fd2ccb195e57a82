"""Rollouts: groups come whole and in order, are judged while others are sampled, and nothing waits for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from threading import Event
from typing import Any

import pytest

from shoal.config import ShoalConfig
from shoal.engines.base import Engine, EngineOutput, Request, SamplingParams
from shoal.errors import EngineError, TrainingError
from shoal.rollout.engine_model import EngineModel
from shoal.rollout.environment import Environment, Item
from shoal.rollout.rollouts import Rollouts
from shoal.rollout.single_turn import SingleTurnEnvironment
from shoal.rollout.tool_calls import ToolCall, as_tool, run_call
from shoal.types import Completion, Group, Prompt, Segment, StopReason

ITEMS = [Item(Prompt(name, [number, 9])) for number, name in enumerate("abc")]
SAMPLING = SamplingParams(4)


class OneByOne(Engine):
    """Finishes one request at a poll, in the order in which they came. A context that begins with 7 is refused."""

    def __init__(self, *, fails_after: int = 10**6) -> None:
        self.requests: list[Request] = []
        self.seen: list[Request] = []
        self.submissions: list[int] = []
        self.polls = 0
        self.fails_after = fails_after

    @property
    def max_length(self) -> int:
        return 100

    @property
    def in_flight(self) -> int:
        return len(self.requests)

    def submit(self, requests: Sequence[Request]) -> None:
        if any(request.prompt_ids[0] == 7 for request in requests):
            raise ValueError("7 is no way to begin")
        self.submissions.append(len(requests))
        self.requests += requests
        self.seen += requests

    def poll(self, timeout: float) -> list[EngineOutput]:
        self.polls += 1
        if self.polls > self.fails_after:
            raise EngineError("the engine is gone")
        request = self.requests.pop(0)
        return [EngineOutput(request.id, [5], [-0.5], StopReason.STOP, [(0, 3)])]

    def abort(self, ids: Sequence[str]) -> None:
        self.requests = [request for request in self.requests if request.id not in ids]

    def logprobs(self, segments: Sequence[Segment], temperature: float = 1.0) -> list[list[float]]:
        raise NotImplementedError


class Notes:
    """A judge that writes down which groups it got, and after how many polls."""

    def __init__(self, engine: OneByOne) -> None:
        self.engine = engine
        self.begun: list[tuple[str, int]] = []
        self.forgotten = False

    def begin(self, group: Group, step: int | None) -> None:
        self.begun.append((group.id, self.engine.polls))

    def look(self) -> None:
        pass

    def forget(self) -> None:
        self.forgotten = True


class Plain(Environment):
    """The single turn, written as an environment of one's own."""

    async def rollout(self, item: Item, index: int, model: Any, sampling: SamplingParams) -> Completion:
        output = await model.sample(item.prompt.token_ids, self.seed(item, index), sampling)
        segment = Segment(item.prompt.token_ids, output.token_ids, output.logprobs, [True])
        return Completion([segment], output.stop_reason, versions=output.versions)


def rollouts(kind: type[Environment], engine: Engine, judge: Any = None, timeout: float = 60.0) -> Rollouts:
    cfg = ShoalConfig()
    cfg.environment.timeout = timeout
    return Rollouts(kind(cfg, None, str), EngineModel(engine), judge)


@pytest.mark.parametrize("kind", [SingleTurnEnvironment, Plain])
def test_a_group_is_judged_as_soon_as_it_is_whole_while_others_are_sampled(kind: type[Environment]):
    engine = OneByOne()
    notes = Notes(engine)
    groups = rollouts(kind, engine, notes).sample(ITEMS, size=2, sampling=SAMPLING)
    assert [group.id for group in groups] == ["a", "b", "c"]
    assert notes.begun == [("a", 2), ("b", 4), ("c", 6)]
    assert all(completion.segments[0].sampled_ids == [5] for group in groups for completion in group.completions)
    assert not engine.in_flight


@pytest.mark.parametrize("kind", [SingleTurnEnvironment, Plain])
def test_what_is_asked_for_at_once_is_one_submission(kind: type[Environment]):
    engine = OneByOne()
    rollouts(kind, engine).sample(ITEMS, size=2, sampling=SAMPLING)
    assert engine.submissions == [6]


def test_both_ways_ask_with_the_same_seeds():
    asked = []
    for kind in (SingleTurnEnvironment, Plain):
        engine = OneByOne()
        rollouts(kind, engine).sample(ITEMS, size=2, sampling=SAMPLING)
        asked.append([(request.prompt_ids, request.seed) for request in engine.seen])
    assert asked[0] == asked[1] and len({seed for _, seed in asked[0]}) == 6


@pytest.mark.parametrize("kind", [SingleTurnEnvironment, Plain])
def test_a_request_that_the_engine_refuses_costs_one_completion_and_not_the_others(kind: type[Environment]):
    items = [*ITEMS, Item(Prompt("refused", [7, 9]))]
    *good, refused = rollouts(kind, OneByOne()).sample(items, size=2, sampling=SAMPLING)
    assert {one.stop_reason for group in good for one in group.completions} == {StopReason.STOP}
    for completion in refused.completions:
        assert completion.stop_reason is StopReason.ERROR and "no way to begin" in completion.info["error"]
        assert completion.num_sampled == 0


class Fragile(Plain):
    async def rollout(self, item: Item, index: int, model: Any, sampling: SamplingParams) -> Completion:
        if item.prompt.id == "b" and index == 1:
            raise KeyError("oops")
        return await super().rollout(item, index, model, sampling)


def test_code_that_fails_costs_one_completion_and_not_the_others():
    groups = rollouts(Fragile, OneByOne()).sample(ITEMS, size=2, sampling=SAMPLING)
    reasons = [[completion.stop_reason for completion in group.completions] for group in groups]
    stop, error = StopReason.STOP, StopReason.ERROR
    assert reasons == [[stop, stop], [stop, error], [stop, stop]]
    assert groups[1].completions[1].info["error"] == "KeyError: 'oops'"


@pytest.mark.parametrize("kind", [SingleTurnEnvironment, Plain])
def test_an_engine_that_fails_ends_the_call_and_leaves_nothing_under_way(kind: type[Environment]):
    engine = OneByOne(fails_after=3)
    notes = Notes(engine)
    made = rollouts(kind, engine, notes)
    with pytest.raises(EngineError, match="the engine is gone"):
        made.sample(ITEMS, size=2, sampling=SAMPLING)
    assert notes.forgotten and not engine.in_flight and not made.model.answers  # type: ignore[attr-defined]
    engine.fails_after = 10**6
    assert len(made.sample(ITEMS, size=1, sampling=SAMPLING)) == 3


class Stuck(Plain):
    async def rollout(self, item: Item, index: int, model: Any, sampling: SamplingParams) -> Completion:
        if item.prompt.id == "c":
            await asyncio.Event().wait()
        return await super().rollout(item, index, model, sampling)


def test_an_environment_that_never_goes_on_is_named_at_its_deadline():
    with pytest.raises(TrainingError, match=r"Stuck: 1 completions wait .*timeout=0\.2 s.*: c/0, completion"):
        rollouts(Stuck, OneByOne(), timeout=0.2).sample(ITEMS, size=1, sampling=SAMPLING)


def test_a_call_from_a_running_event_loop_works_as_in_a_notebook():
    async def notebook() -> list[Group]:
        return rollouts(Plain, OneByOne()).sample(ITEMS, size=1, sampling=SAMPLING)

    assert len(asyncio.run(notebook())) == 3


def test_a_tool_that_hangs_holds_up_no_other():
    release = Event()

    def hanging() -> str:
        """Hangs."""
        release.wait(60)
        return ""

    def quick() -> str:
        """Does not."""
        return "done"

    tools = [as_tool(hanging), as_tool(quick)]

    async def calls() -> list[dict[str, Any]]:
        hung = [asyncio.create_task(run_call(ToolCall("hanging", {}), tools, 50.0)) for _ in range(64)]
        await asyncio.sleep(0)
        answered = [await run_call(ToolCall("quick", {}), tools, 50.0) for _ in range(3)]
        for task in hung:
            task.cancel()
        await asyncio.gather(*hung, return_exceptions=True)
        return answered

    started = time.monotonic()
    assert [found["output"] for found in asyncio.run(calls())] == ["done"] * 3
    assert time.monotonic() - started < 40, "the hanging tools were not waited for"
    release.set()
