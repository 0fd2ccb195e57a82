"""Groups that are rolled out while the learner trains, never staler than `source.max_staleness` versions."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from threading import Condition, RLock, Thread
from time import monotonic
from typing import Any

import msgpack

from shoal.config import ShoalConfig
from shoal.errors import TrainingError
from shoal.files import write_atomically
from shoal.monitor.monitor import Monitor
from shoal.rewards.report import ScoreReport
from shoal.rollout.background import BackgroundRollouts
from shoal.rollout.environment import Item
from shoal.rollout.sampling import sampling_params
from shoal.rollout.slots import Slots
from shoal.rollout.take_rule import take, waited_for
from shoal.tasks.stream import PromptStream
from shoal.training.async_metrics import Finished, Tally
from shoal.training.parts import Parts
from shoal.training.sources import GroupSource, StoppedWaiting
from shoal.types import Group

logger = getLogger(__name__)

LOOK_SECONDS = 0.5  # between looks at whether a stop was asked for
END_SECONDS = 10.0
MOST_EMPTY = 10  # batches' worth of groups in a row that cannot be trained on
WAITING = "waiting_groups.msgpack"


@dataclass
class Started:
    """A group that is being rolled out or scored. `version` is the engine's at its start."""

    item: Item
    version: int
    since: float


class AsyncSource(GroupSource):
    """Keeps (lead + 1) x prompts_per_step groups between their start and the publication of what was trained on them.

    Three threads: rollouts start and finish groups (`BackgroundRollouts`), one scores them, and the learner's takes
    them by the rule of `rollout.take_rule`. All that they share is held by `changed`.
    """

    ahead = True

    def __init__(
        self, cfg: ShoalConfig, parts: Parts, monitor: Monitor, total_steps: int, stopping: Callable[[], bool]
    ) -> None:
        self.cfg = cfg
        self.parts = parts
        self.monitor = monitor
        self.stopping = stopping
        self.size = cfg.run.prompts_per_step
        self.stream = PromptStream(parts.task.train, seed=cfg.run.seed, shuffle=cfg.data.shuffle)
        self.refill = cfg.algorithm.zero_variance == "refill"
        self.slots = Slots(self.size, cfg.source.lead)
        self.wanted = total_steps * self.size
        self.taken = 0  # groups that were trained on, or are
        self.changed = Condition(RLock())
        self.again: deque[Item] = deque()
        self.numbers = 0
        self.under_way: dict[int, Started] = {}
        self.unscored: deque[tuple[int, Group]] = deque()
        self.ready: dict[int, Finished] = {}
        self.filtered: list[Group] = []
        self.cut: set[int] = set()
        self.scored = ScoreReport()
        self.tally = Tally()
        self.nothing = 0
        self.why = ""
        self.failure: Exception | None = None
        self.closing = False
        self.idle_since: float | None = None
        self.last_taken = monotonic()
        self.last_tokens = 0
        self.said = ""
        self.waits = ""
        self.last: dict[str, float] = {}
        self.saved: list[dict[str, Any]] = []
        self.rollouts: BackgroundRollouts | None = None
        self.scoring = Thread(target=self._score, name="scoring", daemon=True)

    # The learner's thread.

    def next_groups(self, step: int) -> list[Group]:
        """The groups of a step in the order in which they were started.

        Raises:
            StoppedWaiting: a stop was asked for meanwhile.
            TrainingError: too many groups in a row, or too large a share of rewards, are of no use.
            EngineError: the engine failed.
        """
        self._open()
        version = step - 1
        with self.monitor.phase("wait"), self.changed:
            self.taken = version * self.size
            self._fill()
            while (chosen := self._take(version)) is None:
                if self.failure is not None:
                    raise self.failure
                if self.stopping():
                    raise StoppedWaiting
                with self._waiting(version):
                    self.changed.wait(LOOK_SECONDS)
            self.waits = ""
            taken = sorted(chosen, key=lambda one: one.number)
            for one in taken:
                del self.ready[one.number]
            self.slots.trained(len(taken), version + 1)
            self.taken += len(taken)
            self._fill()
            scored, self.scored = self.scored, ScoreReport()
            scored.check()
            self._measure(taken, version, scored)
            self.passed_over = self.filtered if self.refill else None
            self.filtered = []
        return [one.group for one in taken]

    def _take(self, version: int) -> list[Finished] | None:
        """The groups to train on now. Where groups that are due keep the learner waiting, they are cut if that is what
        `source.at_bound` wants."""
        ready = list(self.ready.values())
        rule = self._rule(version)
        chosen = take([one.oldest for one in ready], self._outstanding(), order=self.cfg.source.order, **rule)
        if chosen is None:
            self._cut_due(version)
            return None
        found = [ready[place] for place in chosen]
        stalest = min(one.oldest for one in found)
        if version - stalest > self.cfg.source.max_staleness:
            raise TrainingError(
                f"a group was sampled with version {stalest} and the learner has version {version}, more than "
                f"source.max_staleness={self.cfg.source.max_staleness} versions later: this is a fault of Shoal's"
            )
        return found

    def _rule(self, version: int) -> dict[str, int]:
        return {"version": version, "prompts_per_step": self.size, "max_staleness": self.cfg.source.max_staleness}

    def _outstanding(self) -> list[int]:
        return [one.version for one in self.under_way.values()]

    def _due(self, version: int) -> list[int]:
        """Numbers of the groups that the learner waits for because they are due."""
        numbers = list(self.under_way)
        places = waited_for([one.oldest for one in self.ready.values()], self._outstanding(), **self._rule(version))
        return [numbers[place] for place in places]

    def _cut_due(self, version: int) -> None:
        if self.cfg.source.at_bound != "cut" or self.rollouts is None:
            return
        due = self._due(version)
        if len(self.ready) + len(due) >= self.size:
            for number in due:
                if number not in self.cut:
                    self.cut.add(number)
                    self.rollouts.cut(number)

    @contextmanager
    def _waiting(self, version: int) -> Any:
        """Names what the learner waits for, and counts the seconds."""
        due = self._due(version)
        self.waits = f"the learner waits for {self._who(due)}"
        self.monitor.progress.phase(self.waits)
        started = monotonic()
        yield
        self.tally.waits["due" if due else "groups"] += monotonic() - started

    def _who(self, due: list[int]) -> str:
        number = due[0] if due else next(iter(self.under_way), None)
        if number is None:
            return f"{self.size} groups, {len(self.ready)} are ready and none is under way"
        started = self.under_way[number]
        done = self.rollouts.done(number) if self.rollouts else 0
        rest = f"version {started.version}, {done} of {self.cfg.run.group_size} done"
        return f"group {number} ({rest}{', due' if due else f'; {len(self.ready)} of {self.size} groups are ready'})"

    def _measure(self, taken: list[Finished], version: int, scored: ScoreReport) -> None:
        now = monotonic()
        self._count_idle(now)
        self.last = {
            **scored.metrics(),
            "groups/sampled": float(self.tally.finished),
            "groups/used": float(len(taken)),
            **self.tally.of_step(taken, version, now - self.last_taken, self.last_tokens),
            "async/slots_free": float(self.slots.free),
            "async/ready": float(len(self.ready)),
            "async/under_way": float(len(self.under_way)),
        }
        self.last_taken = now
        self.last_tokens = sum(one.num_sampled for item in taken for one in item.group.completions)
        who, sentence = self.tally.bottleneck()
        if who and who != self.said:
            self.monitor.message(f"step {version + 1}: {sentence}")
        self.said = who or self.said

    def published(self, version: int) -> None:
        with self.changed:
            self.slots.published(version)
            self._fill()
            self.changed.notify_all()

    def standing(self) -> str:
        """Who waits for whom, for the watchdog."""
        with self.changed:
            groups = (
                f"{len(self.under_way)} groups under way ({len(self.unscored)} of them unscored), {len(self.ready)} "
                f"ready, {self.slots.free} of {self.slots.total} slots free, {self.parts.engine.in_flight} requests at "
                "the engine"
            )
            return f"{self.waits}; {groups}" if self.waits else groups

    # Any thread, holding `changed`.

    def _fill(self) -> None:
        """Starts as many groups as there are slots, and no more than the run needs."""
        if self.rollouts is None or self.closing or self.failure is not None:
            return
        needed = self.wanted - self.taken - len(self.under_way) - len(self.ready)
        new: dict[int, Item] = {}
        for _ in range(min(self.slots.free, needed)):
            item = self.again.popleft() if self.again else Item(*self.stream.next(1)[0])
            self.slots.start()
            self.under_way[self.numbers] = Started(item, self.parts.engine.version, monotonic())
            new[self.numbers] = item
            self.numbers += 1
            self.tally.started += 1
        if new:
            self.rollouts.start(new)
        self._count_idle(monotonic())

    def _count_idle(self, now: float) -> None:
        """Counts the seconds in which no group was under way."""
        if self.idle_since is not None:
            self.tally.engine_idle += now - self.idle_since
        self.idle_since = None if self.under_way else now

    def _fail(self, error: Exception) -> None:
        with self.changed:
            self.failure = self.failure or error
            self.changed.notify_all()

    # The rollouts' thread.

    def _finished(self, number: int, group: Group, cut: bool) -> None:
        with self.changed:
            self.tally.cut += cut
            self.unscored.append((number, group))
            self.changed.notify_all()

    # The scoring thread.

    def _score(self) -> None:
        """Scores groups as they come, all that there are at a time."""
        try:
            while True:
                with self.changed:
                    self.changed.wait_for(lambda: bool(self.unscored) or self.closing)
                    if self.closing:
                        return
                    found = list(self.unscored)
                    step = self.parts.learner.version + 1
                report = self.parts.scorer.finish([group for _, group in found], step)
                with self.changed:
                    for number, group in found:
                        self.unscored.popleft()
                        self._sort_in(number, group)
                    self.scored.add(report)
                    self._fill()
                    self.changed.notify_all()
        except Exception as error:  # noqa: BLE001 - raised again in the learner's thread
            self._fail(error)

    def _sort_in(self, number: int, group: Group) -> None:
        started = self.under_way.pop(number)
        self.cut.discard(number)
        self.tally.finished += 1
        self.tally.tokens += sum(one.num_sampled for one in group.completions)
        known = len(group.known_rewards)
        if known < 2:
            self.tally.failed += 1
            self._of_no_use(f"{known} of {len(group.completions)} rewards of group {number} are known")
        elif self.refill and group.zero_variance:
            self.tally.filtered += 1
            self.filtered.append(group)
            self._of_no_use(f"all rewards of group {number} are equal (algorithm.zero_variance=refill)")
        else:
            self.nothing = 0
            slow = self.tally.took(monotonic() - started.since)
            engine = self.parts.engine.version
            self.ready[number] = Finished(number, group, started.version, engine, oldest(group, started.version), slow)

    def _of_no_use(self, why: str) -> None:
        """A group that is not trained on gives its slot back at once; too many of them in a row end the run."""
        self.slots.give_up()
        self.nothing += 1
        if self.nothing >= MOST_EMPTY * self.size and self.failure is None:
            self.failure = TrainingError(
                f"{self.nothing} groups in a row, {MOST_EMPTY} batches' worth, cannot be trained on; the last: {why}"
            )

    # The whole.

    def _open(self) -> None:
        if self.rollouts is None:
            self.rollouts = self.parts.rollouts.go_on(
                size=self.cfg.run.group_size,
                sampling=sampling_params(self.cfg),
                finished=self._finished,
                failed=self._fail,
            )
            self.last_taken = monotonic()
            self.scoring.start()

    def metrics(self) -> dict[str, float]:
        return self.last

    def state_dict(self) -> dict[str, Any]:
        """The position in the data, and the prompts that were drawn and are not finished: they are asked again. `save`
        writes the finished groups of the same moment."""
        with self.changed:
            self.saved = [{"start": one.start, "group": one.group.to_dict()} for one in self.ready.values()]
            pending = [one.item for one in self.under_way.values()] + list(self.again)
            return {"stream": self.stream.state_dict(), "pending": [[item.prompt.id, item.epoch] for item in pending]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stream.load_state_dict(state["stream"])
        prompts = {prompt.id: prompt for prompt in self.stream.prompts}
        self.again = deque(Item(prompts[name], epoch) for name, epoch in state.get("pending", []))

    def save(self, folder: Path) -> None:
        """Writes the finished groups that were not trained on, with their versions, as of `state_dict`."""
        if self.saved:
            write_atomically(folder / WAITING, msgpack.packb(self.saved))

    def load(self, folder: Path) -> None:
        """Takes them up again."""
        if not (folder / WAITING).exists():
            return
        for row in msgpack.unpackb((folder / WAITING).read_bytes()):
            group = Group.from_dict(row["group"])
            self.slots.start()
            self.ready[self.numbers] = Finished(
                self.numbers, group, row["start"], self.parts.learner.version, oldest(group, row["start"])
            )
            self.numbers += 1

    def close(self) -> None:
        """Ends the rollouts, then the scoring."""
        with self.changed:
            self.closing = True
            self.changed.notify_all()
        self.parts.rollouts.stop()
        if self.scoring.is_alive():
            self.scoring.join(END_SECONDS)


def oldest(group: Group, start: int) -> int:
    """The version of a group's oldest token; `start`, that of its start, where none is known."""
    versions = [one.first_version for one in group.completions if one.first_version >= 0]
    return min(versions, default=start)
