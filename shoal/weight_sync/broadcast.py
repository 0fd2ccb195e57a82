"""Weights through a process group of the learner and every worker of every replica: Gloo on CPUs, NCCL between GPUs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from logging import getLogger
from typing import Any

from shoal.config.nodes.parts import WeightSyncConfig
from shoal.engines.servers.control import Control
from shoal.errors import EngineError, TrainingError
from shoal.learners.base import Learner
from shoal.weight_sync.check import SelfCheck
from shoal.weight_sync.servers import ReplicaEngine, ServerSync
from shoal.weight_sync.together import run_together
from shoal.wire.stream import Meeting, bucket_size, listen

logger = getLogger(__name__)

LEARNER = "the learner"


class BroadcastSync(ServerSync):
    """Tensors leave one after another as the learner gathers them; workers put them where their model has them.

    Full tensors go to every worker, which takes its own shard under tensor parallelism. Beside the weights a worker
    holds the largest tensor once, the learner one bucket of small ones. The learner sends from its own process: nothing
    of the weights passes through this one.
    """

    def __init__(self, cfg: WeightSyncConfig, learner: Learner, engine: ReplicaEngine, check: SelfCheck) -> None:
        super().__init__(cfg, learner, engine, check)
        self.store = listen(cfg.host, cfg.timeout)
        self.meetings = count()
        self.met: Meeting | None = None

    def swap(self, version: int) -> None:
        met = self.met
        if met is None or met.world != self.world:
            met = self.connect(self.engine.replicas)
        try:
            self.stream(met, self.engine.replicas, version)
        except EngineError as error:
            # What is left of the group cannot be used again: its members wait for different things.
            self.met = None
            raise EngineError(f"weight_sync=broadcast: version {version} did not get through: {error}") from error
        self.met = met

    @property
    def world(self) -> int:
        """The learner and the workers of all replicas, which may have become fewer."""
        return 1 + sum(control.tensor_parallel for control in self.engine.replicas)

    def restore(self, control: Control) -> None:
        # The group died with the server; the next publication makes another.
        self.met = None
        version = self.learner.version
        if version != self.published:
            self.publish(version, now=True)
            return
        with self.readable():
            self.stream(self.connect([control]), [control], version)

    def connect(self, replicas: Sequence[Control]) -> Meeting:
        """Brings the learner, rank 0, and the workers of these replicas together in a group.

        Raises:
            EngineError: one of them did not come in time.
        """
        name = f"weights {next(self.meetings)}"
        world = 1 + sum(control.tensor_parallel for control in replicas)
        host, seconds = self.cfg.host, self.cfg.timeout
        meeting = Meeting(host, self.store.port, name, world, seconds)
        calls: dict[str, Callable[[], Any]] = {LEARNER: partial(self.learner.join, meeting)}
        rank = 1
        for control in replicas:
            calls[control.name] = partial(
                control.call_workers, "shoal_join", host, self.store.port, name, rank, world, seconds
            )
            rank += control.tensor_parallel
        try:
            run_together(calls, seconds)
        except EngineError as error:
            raise EngineError(
                f"weight_sync=broadcast: no group of {world} on {host}:{self.store.port}: {error}; workers on other "
                "machines need weight_sync.host=ADDRESS of this one, weight_sync.timeout sets how long is waited"
            ) from error
        return meeting

    def stream(self, met: Meeting, replicas: Sequence[Control], version: int) -> None:
        """All weights to these replicas.

        Raises:
            EngineError: a peer was lost, or the deadline passed.
            TrainingError: a worker has parameters that nothing was sent for.
        """
        specs = self.learner.weight_specs()
        rows, bucket = [spec.to_row() for spec in specs], bucket_size(specs)
        calls: dict[str, Callable[[], Any]] = {
            control.name: partial(control.call_workers, "shoal_receive", version, rows, bucket) for control in replicas
        }
        calls[LEARNER] = partial(self.learner.send_weights, met)
        found = run_together(calls, self.cfg.timeout)
        for name, workers in found.items():
            for row in workers if name != LEARNER else ():
                if row["missing"]:
                    raise TrainingError(
                        f"weight_sync=broadcast: {name} has {len(row['missing'])} parameters that no weight of the "
                        f"learner went to: {', '.join(row['missing'][:5])}; its model is another one"
                    )

    def close(self) -> None:
        self.met = None
        self.learner.leave()
