"""The DeepSpeed learner as the run sees it: one Ray actor for each rank, and no weights in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import Any

import ray
from ray.exceptions import RayError

from shoal.cluster.cluster import Cluster
from shoal.cluster.outcome import Error
from shoal.cluster.rank_actor import RankActor
from shoal.config import ShoalConfig
from shoal.errors import ConfigError, DataError, TrainingError
from shoal.learners.base import Learner, Watcher
from shoal.learners.step import NonFiniteError
from shoal.models.info import ModelInfo
from shoal.types import Batch, Place, Segment
from shoal.wire.stream import Meeting, WeightSpec

ERRORS: dict[str, type[Exception]] = {one.__name__: one for one in (ConfigError, DataError, TrainingError)}
"""What a rank raises that means the same here, by name."""


PEER_SECONDS = 15.0
"""So long, after a rank has failed, another may be found to have died, which is then the reason."""


class DeepSpeedLearner(Learner):
    """Tells the ranks on a cluster what to do, all at once, and waits for them `learner.timeout` seconds.

    Two threads may call it: while rollouts run ahead, weights are published beside the learner's work.
    """

    def __init__(self, cfg: ShoalConfig, info: ModelInfo, cluster: Cluster, total_steps: int, logs: Path) -> None:
        """`cfg.model.name` is a model that every node can load; each rank writes a log in `logs`.

        Raises:
            ConfigError: the model or DeepSpeed's options do not work.
            TrainingError: a rank did not start in time.
        """
        self.cfg = cfg
        self.version = 0
        self.world = cluster.world
        self.asking = Lock()
        self.specs: list[WeightSpec] | None = None
        self.logs = [(logs / f"learner_rank_{rank}.log").absolute() for rank in range(self.world)]
        self.model_info = info
        self.actors: list[Any] = []
        self.nodes = [cluster.rank_node(rank) for rank in range(self.world)]
        self.doing = "starts"
        environment = {"env_vars": {"OMP_NUM_THREADS": str(cfg.runtime.threads or 1)}}
        try:
            for rank, log in enumerate(self.logs):
                options = cluster.rank_options(rank)
                make = ray.remote(RankActor).options(**options, max_restarts=0, runtime_env=environment)
                self.actors.append(make.remote(str(log)))
            address = self._wait([self.actors[0].address.remote()], "start")[0]
            opened = self._wait(
                [
                    actor.open.remote(cfg, address, rank, self.world, total_steps)
                    for rank, actor in enumerate(self.actors)
                ],
                "load the model",
                outcomes=True,
            )
            self.runtime = opened[0]
        except BaseException:
            self.close()
            raise

    @property
    def info(self) -> ModelInfo:
        return self.model_info

    def train(self, batch: Batch, watcher: Watcher | None = None) -> dict[str, float]:
        """See `Learner.train`. `watcher` is told once of all writes of the batch."""
        if watcher:
            watcher.before_write()
        try:
            metrics = self._all("train", ray.put(batch))[0]
        finally:
            if watcher:
                watcher.after_write()
        self.version += 1
        return metrics

    def logprobs(self, segments: Sequence[Segment], temperature: float = 1.0) -> list[list[float]]:
        return [row for rows in self._all("logprobs", list(segments), temperature) for row in rows]

    def sample(self, contexts: Sequence[list[int]], count: int) -> list[Segment]:
        return list(self._all("sample", list(contexts), count)[0])

    def rounding(self, segments: Sequence[Segment]) -> float:
        return float(self._all("rounding", list(segments))[0])

    def save(self, folder: Path) -> None:
        self._all("save", folder.absolute())

    def load(self, folder: Path) -> None:
        self._all("load", folder.absolute())
        self.version = self._all("counted")[0]

    def export(self, folder: Path) -> None:
        self._all("export", folder.absolute())

    def weight_specs(self) -> list[WeightSpec]:
        if self.specs is None:
            self.specs = self._all("weight_specs")[0]
        return self.specs

    def join(self, meeting: Meeting) -> None:
        self._all("join", meeting)

    def send_weights(self, meeting: Meeting) -> None:
        self._all("send_weights", meeting)

    def leave(self) -> None:
        if self.actors:  # no answer is waited for: whoever died or hangs has left as well
            self.actors[0].call.remote("leave")

    def places(self) -> list[Place]:
        return [
            (node, f"rank {rank}", f"version {self.version}, {self.doing or 'idle'}")
            for rank, node in enumerate(self.nodes)
        ]

    def close(self) -> None:
        """Ends the ranks at once: what they held is saved, or not wanted."""
        for actor in self.actors:
            ray.kill(actor)
        self.actors = []

    def _all(self, method: str, *arguments: Any) -> list[Any]:
        """What a method gives on every rank, in their order.

        Raises:
            TrainingError: a rank died, or did not answer in time; or what the ranks raise.
        """
        what = self.doing = method.replace("_", " ")
        with self.asking:  # every rank gets the calls in the same order: each waits for its peers'
            calls = [actor.call.remote(method, *arguments) for actor in self.actors]
        found = self._wait(calls, what, outcomes=True)
        self.doing = ""
        return found

    def _wait(self, calls: Sequence[Any], what: str, outcomes: bool = False) -> list[Any]:
        """The results, as soon as all are there; the first failure at once, since the others then wait for ever."""
        deadline = monotonic() + self.cfg.learner.timeout
        found: dict[Any, Any] = {}
        pending = list(calls)
        while pending:
            ready, pending = ray.wait(pending, timeout=max(deadline - monotonic(), 0))
            if not ready:
                ranks = [rank for rank, call in enumerate(calls) if call in pending]
                raise TrainingError(
                    f"the learner's rank {ranks[0]} did not {what} within {self.cfg.learner.timeout:g} s "
                    f"(learner.timeout); its log is {self.logs[ranks[0]]}"
                )
            for call in ready:
                rank = calls.index(call)
                found[call] = self._result(rank, call, what)
                if outcomes:
                    value, error = found[call]
                    if error is not None and pending:
                        # Where a rank died, the others fail for it, and may say so first.
                        for other in ray.wait(pending, num_returns=len(pending), timeout=PEER_SECONDS)[0]:
                            self._result(calls.index(other), other, what)
                    found[call] = self._value(rank, value, error)
        return [found[call] for call in calls]

    def _result(self, rank: int, call: Any, what: str) -> Any:
        """What a rank's call gave. Raises TrainingError where the rank died."""
        try:
            return ray.get(call)
        except RayError as error:
            why = " ".join(str(error).split())[:200]
            raise TrainingError(
                f"the learner's rank {rank} failed to {what}: {why}; its log is {self.logs[rank]}"
            ) from error

    def _value(self, rank: int, value: Any, error: Error | None) -> Any:
        if error is None:
            return value
        kind, message, completions = error
        if kind == "NonFiniteError":
            raise NonFiniteError(message, completions)
        if kind in ERRORS:
            raise ERRORS[kind](message)
        raise RuntimeError(f"the learner's rank {rank}: {message}; its log is {self.logs[rank]}")
