"""Rollouts that go on while the learner trains, in a thread with an event loop of its own that pumps the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from logging import getLogger
from time import monotonic
from typing import Any, Protocol, TypeVar

from shoal.engines.base import SamplingParams
from shoal.errors import ShoalError, TrainingError
from shoal.loop_thread import LoopThread
from shoal.rollout.engine_model import EngineModel
from shoal.rollout.environment import Item
from shoal.rollout.wave import Wave
from shoal.types import Completion, Group, Segment, StopReason

T = TypeVar("T")
logger = getLogger(__name__)

TURN_SECONDS = 0.02  # of waiting for the engine between two looks at what else is to be done


class Start(Protocol):
    """Begins the completions of a wave: `Rollouts.start`."""

    def __call__(self, wave: Wave, sampling: SamplingParams, news: asyncio.Event) -> set[asyncio.Task[None]]: ...


@dataclass
class _Running:
    wave: Wave
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    names: list[str] = field(default_factory=list)


class BackgroundRollouts:
    """Groups are started from any thread, and are told to `finished`, in this one's thread, when they are whole.

    Args:
        start: Begins the completions of one item.
        model: Its engine belongs to this thread until `close`.
        size: Completions of a group.
        sampling: How they are sampled.
        timeout: Seconds for which the environments' own code may do nothing.
        finished: Is told a group's number, the group, and whether it was cut. It returns at once.
        failed: Is told of the error that ended the thread's work.
    """

    def __init__(
        self,
        start: Start,
        model: EngineModel,
        *,
        size: int,
        sampling: SamplingParams,
        timeout: float,
        finished: Callable[[int, Group, bool], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._start = start
        self._model = model
        self._size = size
        self._sampling = sampling
        self._timeout = timeout
        self._finished = finished
        self._failed = failed
        self._running: dict[int, _Running] = {}
        self._moved = monotonic()
        self._thread = LoopThread("rollouts")
        self._news = asyncio.Event()  # set when there may be something to do
        self._driver = asyncio.run_coroutine_threadsafe(self._drive(), self._thread.loop)

    def start(self, items: Mapping[int, Item]) -> None:
        """Starts groups, by number; returns at once. What they ask for goes to the engine in one submission."""
        self._thread.loop.call_soon_threadsafe(self._begin_all, items)

    def cut(self, number: int) -> None:
        """Ends a group with what there is of it; returns at once. Its unfinished completions are truncated ones of
        which no token is trained."""
        self._thread.loop.call_soon_threadsafe(self._cut, number)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Other rollouts on the same engine, such as an evaluation's, in the same thread; waits for them."""
        return self._thread.run(work)

    def done(self, number: int) -> int:
        """How many completions of a group are there."""
        running = self._running.get(number)
        return self._size if running is None else self._size - running.wave.missing

    def close(self) -> None:
        """Takes back all requests and ends the thread."""
        self._thread.close()

    def _begin_all(self, items: Mapping[int, Item]) -> None:
        for number, item in items.items():
            self._begin(number, item)
        self._news.set()

    def _begin(self, number: int, item: Item) -> None:
        running = self._running[number] = _Running(Wave([item], self._size))
        running.wave.finished = lambda group: self._whole(number, group)
        running.wave.progress = lambda completion: self._move()
        self._move()
        before = set(self._model.answers)
        running.tasks = self._start(running.wave, self._sampling, self._news)
        running.names = [name for name in self._model.answers if name not in before]

    def _move(self) -> None:
        self._moved = monotonic()

    def _whole(self, number: int, group: Group) -> None:
        running = self._running.pop(number)
        if running.wave.cut:
            for completion in group.completions:
                _truncate(completion)
        self._finished(number, group, running.wave.cut)

    def _cut(self, number: int) -> None:
        running = self._running.get(number)
        if running is None or running.wave.cut:
            return
        running.wave.cut = True
        self._model.engine.abort([name for name in running.names if name in self._model.answers])
        for task in running.tasks:
            task.cancel()
        if running.tasks:
            for place, index in running.wave.missing_places():
                running.wave.put(place, index, _nothing_of(running.wave.items[place]))

    async def _drive(self) -> None:
        """Keeps the engine and the environments' code going until the thread ends or something fails."""
        try:
            while True:
                await asyncio.sleep(0)
                if self._model.busy:
                    self._model.pump(TURN_SECONDS)
                    self._move()
                else:
                    self._news.clear()
                    with suppress(TimeoutError):  # tasks may ask the model without telling
                        await asyncio.wait_for(self._news.wait(), TURN_SECONDS)
                self._see_to_tasks()
                self._refuse_silence()
        except ShoalError as error:
            self._failed(error)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - raised again in the thread that waits for groups
            self._failed(error)
        finally:
            self._model.withdraw_all()

    def _see_to_tasks(self) -> None:
        for running in list(self._running.values()):
            for task in [task for task in running.tasks if task.done()]:
                running.tasks.discard(task)
                if not task.cancelled():
                    task.result()

    def _refuse_silence(self) -> None:
        """Raises TrainingError where nothing but the environments' code is waited for, and that does nothing."""
        waited = monotonic() - self._moved
        if self._running and waited > self._timeout:
            number, running = next(iter(self._running.items()))
            raise TrainingError(
                f"{len(self._running)} groups wait for the environment's own code, which has done nothing for "
                f"environment.timeout={self._timeout:g} s; one of them: group {number}, {running.wave.first_missing()}"
            )


def _truncate(completion: Completion) -> None:
    """What was aborted counts as truncated, and none of its tokens is trained."""
    if completion.stop_reason == StopReason.ABORT:
        completion.stop_reason = StopReason.LENGTH
        completion.info["cut"] = True
        for segment in completion.segments:
            segment.mask = [False] * len(segment.sampled_ids)


def _nothing_of(item: Item) -> Completion:
    return Completion([Segment(list(item.prompt.token_ids), [], [], [])], StopReason.ABORT)
