"""The actors of a learner's ranks: started together, asked together, and ended together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from shoal.cluster.cluster import Cluster
from shoal.cluster.outcome import Error
from shoal.cluster.rank_actor import RankActor
from shoal.config import ShoalConfig
from shoal.errors import ConfigError, DataError, TrainingError
from shoal.learners.step import NonFiniteError

ERRORS: dict[str, type[Exception]] = {one.__name__: one for one in (ConfigError, DataError, TrainingError)}
"""What a rank raises that means the same here, by name."""

PEER_SECONDS = 30.0
"""So long, after a rank has failed, another may be found to have died, which is then the reason."""

LOOK_SECONDS = 1.0  # between looks at whether a node has gone that an actor is to be started on


STARTS, LOADS = "start", "load the model"  # what ranks do first


class RankLost(TrainingError):
    """A rank died, or did not answer in time: none of them can be used again."""


class Ranks:
    """One actor for each rank. Two threads may ask: every rank gets the calls in the same order, since each waits for
    its peers'.

    Args:
        logs: Folder of the ranks' logs.
        total_steps: Batches of the whole run.
    """

    def __init__(self, cfg: ShoalConfig, cluster: Cluster, total_steps: int, logs: Path) -> None:
        self.cfg = cfg
        self.cluster = cluster
        self.total_steps = total_steps
        self.folder = logs
        self.asking = Lock()
        self.actors: list[Any] = []
        self.nodes: list[str] = []
        self.runtime: Any = None

    def log(self, rank: int) -> Path:
        """Where a rank writes."""
        return (self.folder / f"learner_rank_{rank}.log").absolute()

    def start(self) -> None:
        """Starts them and has each load the model.

        Raises:
            ConfigError: the model or DeepSpeed's options do not work.
            RankLost: a rank did not start in time.
        """
        cfg, cluster = self.cfg, self.cluster
        environment = {"env_vars": {"OMP_NUM_THREADS": str(cfg.runtime.threads or 1)}}
        self.nodes = [cluster.rank_node(rank) for rank in range(cluster.world)]
        for rank in range(cluster.world):
            options = cluster.rank_options(rank)
            make = ray.remote(RankActor).options(**options, max_restarts=0, runtime_env=environment)
            self.actors.append(make.remote(str(self.log(rank))))
        # All must be there before any waits for the others.
        address = self._wait([actor.address.remote() for actor in self.actors], STARTS, starting=True)[0]
        calls = [
            actor.open.remote(cfg, address, rank, cluster.world, self.total_steps)
            for rank, actor in enumerate(self.actors)
        ]
        self.runtime = self._wait(calls, LOADS, outcomes=True)[0]

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        """What a method gives on every rank, in their order.

        Raises:
            RankLost: a rank died, or did not answer in time.
            Exception: what the ranks raise.
        """
        with self.asking:
            calls = [actor.call.remote(method, *arguments) for actor in self.actors]
        return self._wait(calls, method.replace("_", " "), outcomes=True)

    def tell(self, rank: int, method: str) -> None:
        """Calls a method of one rank without waiting: whoever died or hangs does not do it."""
        if self.actors:
            self.actors[rank].call.remote(method)

    def kill(self) -> None:
        """Ends them at once: what they held is saved, or not wanted."""
        for actor in self.actors:
            ray.kill(actor)
        self.actors = []

    def _wait(self, calls: Sequence[Any], what: str, outcomes: bool = False, starting: bool = False) -> list[Any]:
        """The results, as soon as all are there; the first failure at once, since the others then wait for ever."""
        deadline = monotonic() + self.cfg.learner.timeout
        found: dict[Any, Any] = {}
        pending = list(calls)
        while pending:
            left = max(deadline - monotonic(), 0)
            ready, pending = ray.wait(pending, timeout=min(left, LOOK_SECONDS) if starting else left)
            if not ready:
                ranks = [rank for rank, call in enumerate(calls) if call in pending]
                gone = self.cluster.lost_nodes() if starting else []
                if monotonic() >= deadline:
                    raise RankLost(
                        f"the learner's rank {ranks[0]} did not {what} within {self.cfg.learner.timeout:g} s "
                        f"(learner.timeout); its log is {self.log(ranks[0])}"
                    )
                if gone:
                    raise RankLost(f"the learner's rank {ranks[0]} did not {what}: the Ray node {gone[0]} is lost")
            for call in ready:
                rank = calls.index(call)
                found[call] = self._result(rank, call, what)
                if outcomes:
                    value, error = found[call]
                    found[call] = self._value(rank, value, error, what)
        return [found[call] for call in calls]

    def _result(self, rank: int, call: Any, what: str) -> Any:
        """What a rank's call gave. Raises RankLost where the rank died, or did not start."""
        try:
            return ray.get(call)
        except RayTaskError as error:  # something that nobody foresaw, such as a port that was taken meanwhile
            why = " ".join(str(error).strip().rpartition("\n")[2].split())[:300]
            kind = RankLost if what in (STARTS, LOADS) else RuntimeError
            raise kind(f"the learner's rank {rank} failed to {what}: {why}; its log is {self.log(rank)}") from error
        except RayError as error:
            why = " ".join(str(error).split())[:200]
            raise RankLost(f"the learner's rank {rank} failed to {what}: {why}; its log is {self.log(rank)}") from error

    def _value(self, rank: int, value: Any, error: Error | None, what: str) -> Any:
        if error is None:
            return value
        kind, message, completions = error
        if kind == "NonFiniteError":
            raise NonFiniteError(message, completions)
        if kind in ERRORS:
            raise ERRORS[kind](message)
        self._find_dead(what)  # where a rank died, the others fail for it, and may say so first
        raise RuntimeError(f"the learner's rank {rank}: {message}; its log is {self.log(rank)}")

    def _find_dead(self, what: str) -> None:
        """Raises RankLost where a rank turns out to have died. One that is busy, or hangs, does not answer."""
        asked = [actor.here.remote() for actor in self.actors]
        pending, deadline = list(asked), monotonic() + PEER_SECONDS
        while pending and monotonic() < deadline:
            ready, pending = ray.wait(pending, timeout=max(deadline - monotonic(), 0))
            for one in ready:
                self._result(asked.index(one), one, what)
