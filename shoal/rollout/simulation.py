"""Asynchronous training in simulated time: what staleness and speed to expect, and the proof of the flow control.

It has the run's own `Slots` and `take`; only engines and learner are made of times. Nothing sleeps.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import count
from math import inf
from random import Random

from shoal.rollout.slots import Slots
from shoal.rollout.take_rule import take

Take = Callable[..., "list[int] | None"]


class StuckError(Exception):
    """Nobody can move any more: learner and engines wait for each other."""


class TooStaleError(Exception):
    """A group was taken that is older than the bound."""


class End(Enum):
    """How a group ends."""

    USED = "used"
    FILTERED = "filtered"  # its rewards are equal: another takes its place
    FAILED = "failed"


@dataclass(frozen=True)
class Flow:
    """What the run's configuration says about flow: see `source.*` and `weight_sync.every`."""

    prompts_per_step: int
    max_staleness: int
    lead: int
    every: int = 1
    order: str = "oldest"


@dataclass(frozen=True)
class Fate:
    """What happens to a group: the seconds from when an engine has room for it to its end. `slow` marks the tail."""

    seconds: float
    end: End = End.USED
    slow: bool = False


@dataclass(frozen=True)
class Lengths:
    """Seconds of completions: log-normal around `median` with standard deviation `spread` of the logarithm, of which
    `slow_share` take `slow_factor` times as long. A group takes as long as the longest of its `size` completions."""

    median: float
    size: int
    spread: float = 0.6
    slow_share: float = 0.02
    slow_factor: float = 10.0
    most: float = inf

    def fate(self, random: Random) -> Fate:
        """Draws a group's."""
        slow = [random.random() < self.slow_share for _ in range(self.size)]
        seconds = [
            min(self.median * random.lognormvariate(0.0, self.spread) * (self.slow_factor if one else 1.0), self.most)
            for one in slow
        ]
        return Fate(max(seconds), slow=any(slow))


@dataclass
class Outcome:
    """What a simulated run came to. Times are in seconds, ages in versions."""

    seconds: float = 0.0
    steps: int = 0
    ages: list[int] = field(default_factory=list)
    trained: list[int] = field(default_factory=list)
    started: int = 0
    ended: dict[End, int] = field(default_factory=dict)
    slow_started: int = 0
    slow_trained: int = 0
    learner_waited: float = 0.0
    engines_idle: float = 0.0

    @property
    def mean_age(self) -> float:
        """Mean staleness of the groups that were trained on."""
        return sum(self.ages) / max(len(self.ages), 1)


def simulate(
    flow: Flow,
    fate: Callable[[int], Fate],
    *,
    steps: int,
    step_seconds: float,
    publish_seconds: float = 0.0,
    room: float = inf,
    deaths: Sequence[float] = (),
    restart_seconds: float = 0.0,
    rule: Take = take,
    slots_class: type[Slots] = Slots,
) -> Outcome:
    """Runs `steps` steps.

    Args:
        flow: The run's flow control.
        fate: By a group's number, what happens to it. Numbers count from 0 in order of start.
        step_seconds: What the learner needs for a step; sampling goes on meanwhile.
        publish_seconds: What a publication holds up both sides.
        room: Groups that the engines have room for at once; the others queue.
        deaths: Times at which the engines die: what they hold begins anew after `restart_seconds`.
        rule: The take rule; tests plant wrong ones.
        slots_class: The same of slots.

    Raises:
        StuckError: nobody can move any more.
        TooStaleError: the bound was broken.
    """
    return _Run(flow, fate, step_seconds, publish_seconds, room, restart_seconds, rule, slots_class).run(steps, deaths)


class _Run:
    """The state of one simulated run. An event is (time, order, what happens then)."""

    def __init__(
        self,
        flow: Flow,
        fate: Callable[[int], Fate],
        step_seconds: float,
        publish_seconds: float,
        room: float,
        restart_seconds: float,
        rule: Take,
        slots_class: type[Slots],
    ) -> None:
        self.flow = flow
        self.fate = fate
        self.step_seconds = step_seconds
        self.publish_seconds = publish_seconds
        self.room = room
        self.restart_seconds = restart_seconds
        self.rule = rule
        self.slots = slots_class(flow.prompts_per_step, flow.lead)
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.order = count()
        self.now = 0.0
        self.steps = 0
        self.version = self.published = 0
        self.training = False
        self.versions: dict[int, int] = {}  # of groups that are started and not yet trained on: the engine's then
        self.fates: dict[int, Fate] = {}
        self.queued: deque[int] = deque()
        self.running: dict[int, int] = {}  # by group: which of its lives counts, after deaths
        self.ready: list[int] = []
        self.waits_since: float | None = 0.0
        self.idle_since: float | None = 0.0
        self.outcome = Outcome(ended=dict.fromkeys(End, 0))

    def run(self, steps: int, deaths: Sequence[float]) -> Outcome:
        self.steps = steps
        for time in deaths:
            self.at(time, self.die)
        self.fill()
        self.take()
        while self.outcome.steps < steps:
            # Deaths alone move nobody: there must be a group that ends or a step.
            if not self.running and not self.training and not self.queued:
                raise StuckError(
                    f"step {self.outcome.steps}: {len(self.ready)} groups ready, {self.slots.free} of "
                    f"{self.slots.total} slots free"
                )
            self.now, _, happens = heapq.heappop(self.events)
            happens()
        self.outcome.seconds = self.now
        return self.outcome

    def at(self, time: float, happens: Callable[[], None]) -> None:
        heapq.heappush(self.events, (time, next(self.order), happens))

    # Engines.

    def fill(self) -> None:
        """Starts groups as slots allow, and gives the engines as many as they have room for."""
        while self.slots.free:
            self.slots.start()
            number = self.outcome.started
            self.outcome.started += 1
            self.versions[number] = self.published
            self.fates[number] = self.fate(number)
            self.outcome.slow_started += self.fates[number].slow
            self.queued.append(number)
        while self.queued and len(self.running) < self.room:
            self.begin(self.queued.popleft(), 0, 0.0)
        if self.running and self.idle_since is not None:
            self.outcome.engines_idle += self.now - self.idle_since
            self.idle_since = None
        elif not self.running and self.idle_since is None:
            self.idle_since = self.now

    def begin(self, number: int, life: int, after: float) -> None:
        self.running[number] = life
        self.at(self.now + after + self.fates[number].seconds, lambda: self.finish(number, life))

    def finish(self, number: int, life: int) -> None:
        if self.running.get(number) != life:
            return  # the engine died meanwhile
        del self.running[number]
        end = self.fates[number].end
        self.outcome.ended[end] += 1
        if end is End.USED:
            self.ready.append(number)
        else:
            self.slots.give_up()
            del self.versions[number]
        self.fill()
        self.take()

    def die(self) -> None:
        for number, life in list(self.running.items()):
            self.begin(number, life + 1, self.restart_seconds)

    # The learner.

    def take(self) -> None:
        """Starts a step where the rule allows one."""
        if self.training or self.version == self.steps:
            return
        chosen = self.rule(
            [self.versions[one] for one in self.ready],
            [self.versions[one] for one in (*self.running, *self.queued)],
            version=self.version,
            prompts_per_step=self.flow.prompts_per_step,
            max_staleness=self.flow.max_staleness,
            order=self.flow.order,
        )
        if chosen is None:
            return
        batch = [self.ready[place] for place in chosen]
        self.ready = [one for one in self.ready if one not in batch]
        for number in batch:
            age = self.version - self.versions.pop(number)
            if age > self.flow.max_staleness:
                raise TooStaleError(f"group {number} is {age} versions old, the bound is {self.flow.max_staleness}")
            self.outcome.ages.append(age)
            self.outcome.slow_trained += self.fates[number].slow
        self.outcome.trained += batch
        self.slots.trained(len(batch), self.version + 1)
        self.fill()  # nothing starts here, unless slots are given back too early
        self.training = True
        if self.waits_since is not None:
            self.outcome.learner_waited += self.now - self.waits_since
            self.waits_since = None
        publishes = (self.version + 1) % self.flow.every == 0
        self.at(self.now + self.step_seconds + (self.publish_seconds if publishes else 0.0), self.end_step)

    def end_step(self) -> None:
        self.training = False
        self.waits_since = self.now
        self.version += 1
        self.outcome.steps += 1
        if self.version % self.flow.every == 0:
            self.published = self.version
            self.slots.published(self.version)
        self.fill()
        self.take()
