"""Keys of `environment`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from small_api import SmallApi
from stub_vllm import stub_vllm

from effects.made import by_length
from effects.registry import effect
from shoal.engines.base import EngineOutput, SamplingParams
from shoal.errors import ConfigError, EngineError, RequestRefused, TrainingError
from shoal.rewards.base import Submission
from shoal.rollout.environment import Item
from shoal.rollout.multi_turn import MultiTurnEnvironment
from shoal.rollout.rollouts import Rollouts
from shoal.rollout.sampling import sampling_params
from shoal.rollout.single_turn import SingleTurnEnvironment
from shoal.rollout.tools import ToolEnvironment
from shoal.rollout_api.environment.engine_client import EngineClient
from shoal.rollout_api.environment.modes import open_by_name
from shoal.rollout_api.environment.server import EnvironmentServer
from shoal.tasks.stream import PromptStream
from shoal.types import Completion, StopReason


class Writer:
    """A model of random length: `open` lets it answer; `most` is the highest number of requests at a time."""

    def __init__(self) -> None:
        self.waiting = self.most = 0

    async def sample(
        self, context_ids: Sequence[int], seed: int, sampling: SamplingParams, *, group: str = ""
    ) -> EngineOutput:
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        await asyncio.sleep(0.02)
        self.waiting -= 1
        ids = [7] * (1 + seed % 3)
        return EngineOutput("", ids, [-1.0] * len(ids), StopReason.STOP)


class ByLength(SingleTurnEnvironment):
    """The story task with a reward that differs within most groups."""

    def reward(self, submission: Submission) -> float:
        return by_length(submission)


class Fixed(SingleTurnEnvironment):
    """Every reward is the same."""

    def reward(self, submission: Submission) -> float:
        return 1.0


class Failing(ByLength):
    async def rollout(self, item: Item, index: int, model: Any, sampling: SamplingParams) -> Completion:
        raise RuntimeError("no rollout")


Serve = Callable[..., SmallApi]


@pytest.fixture
def served() -> Serve:
    """Serves an environment until it has sent so many groups, or for as long as given, and for `more` seconds; the
    server with what came."""

    def serve(
        cfg: Any, kind: Any = ByLength, *, groups: int = 4, seconds: float = 60.0, more: float = 0.0, model: Any = None
    ) -> SmallApi:
        api = SmallApi(batch_size=4, num_steps=10)
        opened = open_by_name(f"{__name__}:{kind.__name__}", cfg)
        stream = PromptStream(opened.task.train, seed=0, shuffle=True)

        async def run() -> None:
            rollouts = Rollouts(opened.environment, model or Writer())
            server = EnvironmentServer(rollouts, opened.scorer, stream, "story", api)  # type: ignore[arg-type]
            task = asyncio.create_task(server.serve())
            ends = time.monotonic() + seconds
            while not task.done() and server.counts.sent < groups and time.monotonic() < ends:
                await asyncio.sleep(0.01)
            await asyncio.sleep(more)
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.result()

        try:
            asyncio.run(run())
        finally:
            opened.close()
        return api

    return serve


@effect("environment.ahead")
def test_so_many_batches_wait_at_the_server_at_most(settings, served):
    for ahead, groups in ((1.0, 2), (2.0, 4)):
        api = served(settings({"environment.ahead": ahead}), groups=groups, seconds=20.0, more=1.0)
        assert len(api.queue) == groups, f"{ahead} batches of 4 sequences in groups of 2"


@effect("environment.max_groups")
def test_so_many_groups_are_under_way_at_a_time(settings, served):
    for most in (1, 3):
        model = Writer()
        served(settings({"environment.ahead": 4.0, "environment.max_groups": most}), groups=6, model=model)
        assert model.most == 2 * most


@effect("environment.weight")
def test_the_weight_is_registered(settings, served):
    for weight in (1.0, 0.5):
        api = served(settings({"environment.weight": weight}), groups=1)
        assert api.bodies("/register-env")[0]["weight"] == weight


@effect("environment.min_allocation")
def test_the_least_share_of_a_batch_is_registered(settings, served):
    for share, told in ((0.0, None), (0.25, 0.25)):
        api = served(settings({"environment.min_allocation": share}), groups=1)
        assert api.bodies("/register-env")[0]["min_batch_allocation"] == told


@effect("environment.drop_equal")
def test_groups_of_equal_rewards_are_sent_or_not(settings, served):
    assert served(settings({"environment.drop_equal": False}), Fixed, groups=2).queue
    assert not served(settings({"environment.drop_equal": True}), Fixed, groups=2, seconds=1.0).queue


@effect("environment.max_failed")
def test_so_many_rollouts_may_fail(settings, served):
    for most in (0, 3):
        with pytest.raises(
            TrainingError, match=rf"{most + 1} rollouts failed, more than .*max_failed={most}.*no rollout"
        ):
            served(settings({"environment.max_failed": most}), Failing)


def test_an_environment_goes_on_when_its_engine_refuses_some_prompts(settings, served):
    class Particular(Writer):
        """Refuses every second prompt."""

        def __init__(self) -> None:
            super().__init__()
            self.prompts: list[tuple[int, ...]] = []

        async def sample(
            self, context_ids: Sequence[int], seed: int, sampling: SamplingParams, *, group: str = ""
        ) -> EngineOutput:
            if tuple(context_ids) not in self.prompts:
                self.prompts.append(tuple(context_ids))
            if self.prompts.index(tuple(context_ids)) % 2:
                raise RequestRefused("answers 500")
            return await super().sample(context_ids, seed, sampling)

    assert len(served(settings({"environment.ahead": 2.0}), groups=4, model=Particular()).queue) == 4
    with pytest.raises(TrainingError, match=r"2 rollouts failed, .*answers 500"):
        served(settings({"environment.ahead": 2.0, "environment.max_failed": 1}), groups=100, model=Particular())


@pytest.mark.parametrize(("status", "refused"), [(500, True), (422, True), (401, False), (404, False)])
def test_a_request_that_an_engine_cannot_answer_is_told_from_an_engine_that_cannot_be_used(status, refused):
    with stub_vllm() as stub:
        stub.status = status
        with pytest.raises(EngineError, match=f"answers {status}") as caught:
            asyncio.run(EngineClient(stub.url, 5.0).sample([1], 0, SamplingParams(1)))
    assert isinstance(caught.value, RequestRefused) == refused


@effect("environment.timeout")
def test_an_engine_that_is_not_there_is_waited_for_until_the_timeout(settings):
    with SmallApi().served() as gone:
        pass

    async def ask(timeout: float, seconds: float) -> None:
        await asyncio.wait_for(EngineClient(gone, timeout).sample([1], 0, SamplingParams(1)), seconds)

    with pytest.raises(EngineError, match="does not answer"):
        asyncio.run(ask(settings({"environment.timeout": 1.0}).environment.timeout, 20.0))
    with pytest.raises(TimeoutError):
        asyncio.run(ask(settings({"environment.timeout": 100.0}).environment.timeout, 4.0))


@effect("environment.tools")
def test_tools_make_an_environment_of_turns_with_those_tools(settings):
    assert type(open_by_name("story", settings()).environment) is SingleTurnEnvironment
    environment = open_by_name("story", settings({"environment.tools": ["calculator"]})).environment
    assert isinstance(environment, ToolEnvironment) and [tool.name for tool in environment.tools] == ["calculator"]


def slow() -> str:
    """Takes a while."""
    time.sleep(1.0)
    return "done"


@effect("environment.tool_timeout")
def test_a_tool_has_so_long(settings):
    for timeout, wanted in ((0.1, "error: no answer within 0.1 s"), (20.0, "done")):
        changes = {"environment.tools": [f"{__name__}:slow"], "environment.tool_timeout": timeout}
        environment = open_by_name("story", settings(changes)).environment
        assert isinstance(environment, ToolEnvironment)
        text = '<tool_call>{"name": "slow", "arguments": {}}</tool_call>'
        [reply] = asyncio.run(environment.reply(Item(None), text, {}))  # type: ignore[arg-type]
        assert reply["content"] == wanted


class Talker(MultiTurnEnvironment):
    """Always asks for more."""

    async def reply(self, item: Item, text: str, info: dict[str, Any]) -> Any:
        return [{"role": "user", "content": "more"}]


@effect("environment.max_turns")
def test_turns_end_at_the_most(settings):
    for most in (1, 3):
        cfg = settings({"environment.max_turns": most, "sampling.max_new_tokens": 100})
        opened = open_by_name(f"{__name__}:Talker", cfg)
        [item] = opened.items(1)
        rollouts = Rollouts(opened.environment, Writer())
        made = asyncio.run(rollouts.group(item, size=2, sampling=sampling_params(cfg)))
        opened.close()
        assert {completion.text.count("\n") + 1 for completion in made.completions} == {most}
        assert {completion.stop_reason for completion in made.completions} == {StopReason.TURNS}


@effect("environment.kind")
def test_the_environment_is_of_that_kind(settings):
    kinds = {"single_turn": SingleTurnEnvironment, "tools": ToolEnvironment, f"{__name__}:Talker": Talker}
    for kind, wanted in kinds.items():
        made = open_by_name("story", settings({"environment.kind": kind, "environment.tools": ["calculator"]}))
        assert type(made.environment).__name__ == wanted.__name__
        made.close()
    for wrong in ("nothing", "no_module:Class", f"{__name__}:Writer"):
        with pytest.raises(ConfigError, match=r"environment\.kind"):
            open_by_name("story", settings({"environment.kind": wrong}))
