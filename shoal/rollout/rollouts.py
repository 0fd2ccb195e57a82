"""The one way to roll out: items in, whole groups out, their scoring begun while others are still sampled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from logging import getLogger
from typing import Any, Protocol, TypeVar

from shoal.engines.base import EngineOutput, SamplingParams
from shoal.errors import EngineError, RequestRefused, TrainingError
from shoal.rollout.background import BackgroundRollouts
from shoal.rollout.engine_model import EngineModel
from shoal.rollout.environment import Environment, Item, Model
from shoal.rollout.single_turn import SingleTurnEnvironment
from shoal.rollout.wave import Progress, Wave, group_of
from shoal.types import Completion, Group, Segment, StopReason

logger = getLogger(__name__)

T = TypeVar("T")
TURN_SECONDS = 0.02  # of the engine's work between two turns of tools and other environment code
LONG_SECONDS = 1.0  # the same where there is no such code


class Judge(Protocol):
    """What is told of finished groups: the run's `Scorer`."""

    def begin(self, group: Group, step: int | None) -> None:
        """Starts judging a group; returns at once."""

    def look(self) -> None:
        """Keeps judges in worker processes busy; returns at once."""

    def forget(self) -> None:
        """Gives up what was begun."""


class Rollouts:
    """Rolls an environment's items out on one model.

    `sample` drives the engine of this process to the end of a list of items: training steps, evaluation and the
    start-up check. `group` is one group for callers with an event loop of their own. After `go_on` a thread rolls out
    beside the caller, and `sample` shares the engine with it.
    """

    def __init__(self, environment: Environment, model: Model, judge: Judge | None = None) -> None:
        self.environment = environment
        self.model = model
        self.judge = judge
        self.loop: asyncio.AbstractEventLoop | None = None
        self.background: BackgroundRollouts | None = None

    def sample(
        self,
        items: Sequence[Item],
        *,
        size: int,
        sampling: SamplingParams,
        step: int | None = None,
        progress: Progress | None = None,
        judged: bool = True,
    ) -> list[Group]:
        """Whole groups of `size` completions, in the items' order; `progress` is told of each completion as it ends.

        Where there is a judge and `judged` says so, scoring of each group has begun, unless others are rolled out at
        the same time; `Scorer.finish` ends it. `step` is the training step, None outside training.

        Raises:
            EngineError: the engine failed.
            TrainingError: the environment's code did not move for `environment.timeout` seconds.
        """
        if self.background is not None:
            return self.background.run(self._sample(Wave(items, size), sampling, step, progress, judged=False))
        if self.loop is None:
            self.loop = asyncio.new_event_loop()
        return _run(self.loop, self._sample(Wave(items, size), sampling, step, progress, judged))

    def go_on(
        self,
        *,
        size: int,
        sampling: SamplingParams,
        finished: Callable[[int, Group, bool], None],
        failed: Callable[[Exception], None],
    ) -> BackgroundRollouts:
        """Rollouts in a thread of their own, until its `close`; see `BackgroundRollouts`."""
        assert isinstance(self.model, EngineModel)
        self.background = BackgroundRollouts(
            self.start,
            self.model,
            size=size,
            sampling=sampling,
            timeout=self.environment.cfg.environment.timeout,
            finished=finished,
            failed=failed,
        )
        return self.background

    def stop(self) -> None:
        """Ends the thread of `go_on`, if there is one."""
        if self.background is not None:
            self.background.close()
            self.background = None

    async def group(self, item: Item, *, size: int, sampling: SamplingParams) -> Group:
        """All completions of one item, unscored. Whatever the environment's code raises is raised.

        Raises:
            EngineError: the engine was not there before its deadline, or refuses the item.
        """
        made = [self.environment.rollout(item, index, self.model, sampling) for index in range(size)]
        return group_of(item, await asyncio.gather(*made))

    def close(self) -> None:
        """Ends the rollouts, the environment and the event loop."""
        self.stop()
        self.environment.close()
        if self.loop is not None:
            self.loop.close()
            self.loop = None

    async def _sample(
        self, wave: Wave, sampling: SamplingParams, step: int | None, progress: Progress | None, judged: bool
    ) -> list[Group]:
        assert isinstance(self.model, EngineModel)
        judge = self.judge if judged else None

        def finished(group: Group) -> None:
            if judge is not None:
                judge.begin(group, step)

        wave.finished = finished
        wave.progress = progress
        news = asyncio.Event()
        self.model.news = news
        tasks = self.start(wave, sampling, news)
        try:
            while wave.missing:
                await asyncio.sleep(0)  # environment code, and others in this loop, go on and ask the model
                if self.model.busy:
                    self.model.pump(TURN_SECONDS if tasks or self.background is not None else LONG_SECONDS)
                elif wave.missing:
                    await self._news(news, wave)
                if judge is not None:
                    judge.look()
                for task in [task for task in tasks if task.done()]:
                    tasks.discard(task)
                    task.result()
        except BaseException:
            await _cancel(tasks)
            self.model.withdraw_all()
            if judge is not None:
                judge.forget()
            raise
        return wave.groups()

    def start(self, wave: Wave, sampling: SamplingParams, news: asyncio.Event) -> set[asyncio.Task[None]]:
        """Asks for all completions at once where the environment is one prompt, one answer; else a task for each."""
        environment, model = self.environment, self.model
        plain = isinstance(environment, SingleTurnEnvironment) and (
            type(environment).rollout is SingleTurnEnvironment.rollout
        )
        tasks: set[asyncio.Task[None]] = set()
        for place, item in enumerate(wave.items):
            for index in range(wave.size):
                if plain:
                    assert isinstance(model, EngineModel) and isinstance(environment, SingleTurnEnvironment)
                    seed = environment.seed(item, index)
                    answer = partial(self._answered, wave, place, index)
                    model.ask(item.prompt.token_ids, seed, sampling, answer, group=item.key)
                else:
                    task = asyncio.get_running_loop().create_task(self._roll_out(wave, place, index, sampling))
                    task.add_done_callback(lambda _: news.set())
                    tasks.add(task)
        return tasks

    def _answered(self, wave: Wave, place: int, index: int, output: EngineOutput | EngineError) -> None:
        item = wave.items[place]
        assert isinstance(self.environment, SingleTurnEnvironment)
        if isinstance(output, EngineError):
            wave.put(place, index, _failed(item, output))
        else:
            wave.put(place, index, self.environment.completion(item, output))

    async def _roll_out(self, wave: Wave, place: int, index: int, sampling: SamplingParams) -> None:
        wave.put(place, index, await self._completion(wave.items[place], index, sampling))

    async def _completion(self, item: Item, index: int, sampling: SamplingParams) -> Completion:
        """One completion; where the environment's code fails, one that ended by an error.

        Raises:
            EngineError: the engine is gone, so that no other completion would fare better.
        """
        try:
            return await self.environment.rollout(item, index, self.model, sampling)
        except RequestRefused as error:
            return _failed(item, error)
        except EngineError:
            raise
        except Exception as error:  # noqa: BLE001 the environment is somebody's code: one completion is lost, and counted
            logger.warning("the rollout of %s, completion %d, failed: %s", item.key, index, _what(error))
            return _failed(item, error)

    async def _news(self, news: asyncio.Event, wave: Wave) -> None:
        """Waits until environment code asks the model or ends.

        Raises:
            TrainingError: nothing of that happened for `environment.timeout` seconds.
        """
        news.clear()
        seconds = self.environment.cfg.environment.timeout
        try:
            await asyncio.wait_for(news.wait(), seconds)
        except TimeoutError:
            raise TrainingError(
                f"{type(self.environment).__name__}: {wave.missing} completions wait for the environment's own code, "
                f"which has done nothing for environment.timeout={seconds:g} s; one of them: {wave.first_missing()}"
            ) from None


def _failed(item: Item, error: Exception) -> Completion:
    """A completion that is never trained on."""
    segment = Segment(list(item.prompt.token_ids), [], [], [])
    return Completion([segment], StopReason.ERROR, info={"error": _what(error)})


def _what(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if not isinstance(error, EngineError) else str(error)


async def _cancel(tasks: set[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _run(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    """Runs to the end, also where this thread has a running event loop already (in a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return loop.run_until_complete(work)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(loop.run_until_complete, work).result()
