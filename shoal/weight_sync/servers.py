"""What weight syncs into replicas share: pause, swap, reset the prefix cache, resume, ask for the version, check."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from logging import getLogger
from threading import Condition, RLock
from time import perf_counter
from typing import Any, Protocol

from shoal.config.nodes.parts import WeightSyncConfig
from shoal.engines.servers.control import Control
from shoal.errors import EngineError, TrainingError
from shoal.learners.base import Learner
from shoal.weight_sync.base import PublishHandle, WeightSync
from shoal.weight_sync.check import SelfCheck
from shoal.weight_sync.together import run_together

logger = getLogger(__name__)


class ReplicaEngine(Protocol):
    """What a sync asks of an engine of one or more replicas, beside `Engine`."""

    version: int
    replicas: Sequence[Control]
    restore: Callable[[Control], None] | None
    reviving: AbstractContextManager[Any]
    """Held while a server is started again and given its weights."""

    def refresh(self, version: int) -> None:
        """Requests in flight and new ones are sampled by `version` from here on."""

    def revive(self) -> int:
        """Starts servers again that have died, with the weights of now; how many were since the last call."""


class ServerSync(WeightSync):
    """A kind says what is made ready while the old weights still serve, and how the new ones are put in."""

    def __init__(self, cfg: WeightSyncConfig, learner: Learner, engine: ReplicaEngine, check: SelfCheck) -> None:
        self.cfg = cfg
        self.learner = learner
        self.engine = engine
        self.check = check
        self.published: int | None = None
        self.proven: int | None = None  # a version that was published, confirmed and checked
        # A server that died may ask for weights while the learner writes them.
        self.weights = Condition(RLock())
        self.being_written = False

    def warm_up(self, version: int) -> None:
        """Fills prefix caches by the old weights, where the check of this version will look whether they were reset."""
        self.check.warm_up(version)

    def prepare(self, version: int) -> None:
        """Makes ready what the swap needs. The engine serves meanwhile."""

    def restore(self, control: Control) -> None:
        """Gives the weights of now to a server that was started again because it had died."""

    @abstractmethod
    def swap(self, version: int) -> None:
        """Puts the learner's weights into every replica. Generation is paused; on return each worker has `version`."""

    def before_write(self) -> None:
        with self.readable():
            self.being_written = True

    def after_write(self) -> None:
        with self.weights:
            self.being_written = False
            self.weights.notify_all()

    @contextmanager
    def readable(self) -> Iterator[None]:
        """Holds the weights as they are: nobody writes them, and nobody else reads them, within the block.

        Raises:
            EngineError: they were being written for `weight_sync.timeout` seconds.
        """
        with self.weights:
            if not self.weights.wait_for(lambda: not self.being_written, self.cfg.timeout):
                raise EngineError(
                    f"the learner has been writing its weights for {self.cfg.timeout:g} s (weight_sync.timeout), and a "
                    "server waits for them"
                )
            yield

    def may_overlap(self, version: int) -> bool:
        """All but the first publication: nothing is sampled before it."""
        return self.published is not None

    def note_learner(self, version: int) -> None:
        if version != self.published and self.due(version):
            self.check.note_learner(version)

    def due(self, version: int) -> bool:
        """The first version of a process, and those that `every` divides."""
        return self.published is None or version % self.cfg.every == 0

    def publish(self, version: int, *, now: bool = False) -> PublishHandle:
        if version == self.published or not (now or self.due(version)):
            return PublishHandle(self.engine.version, {})
        seconds: dict[str, float] = {}
        again = False
        while True:
            try:
                if version != self.proven:  # as it is where a server that came back was given it: see `restore`
                    self.update(version, seconds)
                    self.prove(version, seconds)
                return PublishHandle(version, seconds)
            except EngineError as error:
                # A trainer that was stopped for a while (Ctrl-Z) finds deadlines over: so it is tried once more even
                # where no server has died.
                if not self.engine.revive() + self.learner.revive() and again:
                    raise
                again = True
                logger.warning("weight sync: %s; trying again", error)

    def prove(self, version: int, seconds: dict[str, float]) -> None:
        """Asks for the version that is held, and compares log-probs where that is due. No server is started again
        within, which would hold other weights for a moment.

        Raises:
            EngineError: a server does not answer.
            TrainingError: one holds another version, or gives other log-probs.
        """
        with self.engine.reviving:
            with timed(seconds, "confirm"):
                self.confirm(version)
            if self.held is not None:
                self.held(version)
            started = perf_counter()
            if self.check.run(version) is not None:
                seconds["self_check"] = perf_counter() - started
            self.proven = version

    def update(self, version: int, seconds: dict[str, float]) -> None:
        """Pauses, swaps, resets and resumes; fills in the seconds of each.

        Raises:
            EngineError: a server does not do what it is asked.
        """
        with self.readable():
            with timed(seconds, "prepare"):
                self.warm_up(version)
                self.prepare(version)
            with timed(seconds, "pause"):
                self.each("pause", lambda control: control.pause(self.cfg.in_flight))
            with timed(seconds, "swap"):
                self.swap(version)
            with timed(seconds, "reset"):
                self.each("reset the prefix cache", lambda control: control.reset_prefix_cache())
            with timed(seconds, "resume"):
                self.engine.refresh(version)
                self.each("resume", lambda control: control.resume())
            self.published = version

    def each(self, what: str, call: Callable[[Control], Any]) -> dict[str, Any]:
        """One call to every replica, at the same time. Raises EngineError, naming the version and the server."""
        replicas = self.engine.replicas
        if len(replicas) == 1:
            return {replicas[0].name: call(replicas[0])}
        return run_together({one.name: partial(call, one) for one in replicas}, self.cfg.timeout)

    def confirm(self, version: int) -> None:
        """Asks every worker which version it holds.

        Raises:
            TrainingError: one holds another.
        """
        statuses = self.each("tell the version", lambda control: control.call_workers("shoal_status"))
        for name, rows in statuses.items():
            for row in rows:
                if row["version"] != version:
                    raise TrainingError(
                        f"weight sync: version {version} was published, but worker {row['rank']} of {name} holds "
                        f"{row['version']}: the swap failed there without an error; see its log"
                    )


@contextmanager
def timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    """Adds the seconds of a part."""
    started = perf_counter()
    yield
    seconds[part] = perf_counter() - started
