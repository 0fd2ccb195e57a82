"""Keys of asynchronous training, on a source whose rollouts are finished by hand, and the watchdog's."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest

from effects.registry import effect
from shoal.config import ShoalConfig
from shoal.monitor.monitor import Monitor
from shoal.rewards.report import ScoreReport
from shoal.rollout.environment import Item
from shoal.training.async_source import AsyncSource
from shoal.training.sources import StoppedWaiting, SyncSource
from shoal.training.watchdog import watchdog
from shoal.types import Completion, Group, Prompt, Segment, StopReason

AHEAD = {
    "source.kind": "async",
    "source.max_staleness": 2,
    "engine.kind": "vllm_server",
    "weight_sync.kind": "broadcast",
    "algorithm.correction": "token_truncate",
    "run.steps": 20,
}


class ByHand:
    """Stands for rollouts and scorer: groups are whole when the test says so."""

    def __init__(self, cfg: ShoalConfig, tmp_path: Any) -> None:
        self.started: dict[int, tuple[Item, int]] = {}
        self.cut: list[int] = []
        self.engine = SimpleNamespace(version=0, in_flight=0)
        self.stop = False
        prompts = [Prompt(f"p{number}", [number]) for number in range(100)]
        parts: Any = SimpleNamespace(
            task=SimpleNamespace(train=prompts),
            learner=SimpleNamespace(version=0),
            engine=self.engine,
            scorer=SimpleNamespace(finish=lambda groups, step: ScoreReport()),
            rollouts=SimpleNamespace(go_on=self.go_on, stop=lambda: None),
        )
        monitor = Monitor(cfg, tmp_path / "by_hand", total_steps=20)
        self.source = AsyncSource(cfg, parts, monitor, 20, lambda: self.stop)

    def go_on(self, *, finished: Any, **rest: Any) -> Any:
        self.finished = finished
        return SimpleNamespace(start=self.start_all, cut=self.cut_one, done=lambda number: 0)

    def start_all(self, items: Mapping[int, Item]) -> None:
        self.started |= {number: (item, self.engine.version) for number, item in items.items()}

    def cut_one(self, number: int) -> None:
        self.cut.append(number)

    def finish(self, *numbers: int) -> None:
        """These are whole now, of the version that they were started with. Waits until they are scored."""
        for number in numbers:
            item, version = self.started[number]
            made = [
                Completion([Segment([1], [2], [-1.0], [True])], StopReason.STOP, versions=[(0, version)], reward=mark)
                for mark in (0.0, 1.0)
            ]
            self.finished(number, Group(item.prompt.id, made), False)
        with self.source.changed:
            assert self.source.changed.wait_for(lambda: not self.source.unscored, 10)

    def step(self, number: int) -> list[str] | None:
        """The groups of a step, which is published then; None where the learner waits."""
        self.stop = True
        try:
            groups = self.source.next_groups(number)
        except StoppedWaiting:
            return None
        self.engine.version = number
        self.source.published(number)
        return [group.id for group in groups]


@pytest.fixture
def by_hand(tmp_path):
    opened = []

    def make(cfg: ShoalConfig) -> ByHand:
        made = ByHand(cfg, tmp_path)
        opened.append(made)
        made.source.stream.order = list(range(100))
        made.source._open()
        made.source._fill()
        return made

    yield make
    for made in opened:
        made.source.close()


@effect("source.kind")
def test_async_is_another_source(settings, open_run):
    assert type(open_run(settings({})).source) is SyncSource
    assert type(open_run(settings({"source.kind": "async", "source.max_staleness": 0})).source) is SyncSource
    assert settings(AHEAD).source.kind == "async"


@effect("source.lead")
def test_the_lead_is_the_number_of_steps_that_are_started_ahead(settings, by_hand):
    for lead in (0, 1, 2):
        assert len(by_hand(settings({**AHEAD, "source.lead": lead})).started) == (lead + 1) * 2


@effect("source.max_staleness")
def test_a_group_is_waited_for_when_it_has_reached_the_largest_staleness(settings, by_hand):
    for bound in (1, 2):
        made = by_hand(settings({**AHEAD, "source.max_staleness": bound}))
        for step in range(1, bound + 1):
            made.finish(2 * step - 1, 2 * step)
            assert made.step(step) == [f"p{2 * step - 1}", f"p{2 * step}"]
        made.finish(2 * bound + 1, 2 * bound + 2)
        assert made.step(bound + 1) is None
        made.finish(0)
        assert made.step(bound + 1) == ["p0", f"p{2 * bound + 1}"]


@effect("source.order")
def test_the_oldest_groups_come_first_or_the_first_to_finish(settings, by_hand):
    found = {}
    for order in ("oldest", "first_come"):
        made = by_hand(settings({**AHEAD, "source.order": order}))
        made.finish(2, 3)
        assert made.step(1) == ["p2", "p3"]
        made.finish(4, 5)  # of the version after
        made.finish(0, 1)
        found[order] = made.step(2)
    assert found == {"oldest": ["p0", "p1"], "first_come": ["p4", "p5"]}


@effect("source.at_bound")
def test_at_the_bound_the_learner_waits_or_the_group_is_cut(settings, by_hand):
    cut = {}
    for at_bound in ("wait", "cut"):
        made = by_hand(settings({**AHEAD, "source.max_staleness": 1, "source.at_bound": at_bound}))
        made.finish(1, 2)
        assert made.step(1) == ["p1", "p2"]
        made.finish(3)
        assert made.step(2) is None
        assert made.cut == ([0] if at_bound == "cut" else [])
        cut[at_bound] = list(made.cut)
    assert cut == {"wait": [], "cut": [0]}


@effect("run.stall_warning")
def test_what_does_not_move_for_so_many_seconds_is_said(settings):
    said: list[str] = []
    heard = Event()

    def say(text: str) -> None:
        said.append(text)
        heard.set()

    quick, slow = settings({"run.stall_warning": 0.1}), settings({"run.stall_warning": 1e5})
    with watchdog(lambda: "the learner waits for group 4", say, quick.run.stall_warning):
        assert heard.wait(10)
    assert "(run.stall_warning=0.1): the learner waits for group 4" in said[0]
    before = len(said)
    with watchdog(lambda: "the learner waits for group 4", say, slow.run.stall_warning):
        pass
    assert len(said) == before
