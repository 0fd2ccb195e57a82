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
from shoal.wire.snapshot import DeltaSize
from shoal.wire.stream import Meeting, bucket_size, listen

logger = getLogger(__name__)

LEARNER = "the learner"
MOST_CHANGED = 0.4
"""Above this share of changed elements all weights are sent: encoding and applying would take longer."""


class BroadcastSync(ServerSync):
    """Tensors leave one after another as the learner gathers them; workers put them where their model has them.

    Full tensors go to every worker, which takes its own shard under tensor parallelism. Beside the weights a worker
    holds the largest tensor once, the learner one bucket of small ones. The learner sends from its own process: nothing
    of the weights passes through this one.

    With `delta` only what has changed since `common`, a version that every replica was given, is sent. It is found and
    encoded while the old weights still serve. After any failure, and for a replica that was started again, all is sent.
    """

    def __init__(self, cfg: WeightSyncConfig, learner: Learner, engine: ReplicaEngine, check: SelfCheck) -> None:
        super().__init__(cfg, learner, engine, check)
        self.store = listen(cfg.host, cfg.timeout)
        self.meetings = count()
        self.met: Meeting | None = None
        self.common: int | None = None
        self.delta: DeltaSize | None = None
        self.updates = 0
        self.dense = False  # too much changes at each step: not compared again before all is sent as planned
        self.sent: dict[str, float] = {}

    def metrics(self) -> dict[str, float]:
        return self.sent

    def prepare(self, version: int) -> None:
        common, self.common, self.delta = self.common, None, None
        if not self.cfg.delta or common is None:
            return
        turn = self.updates % self.cfg.full_every
        if turn == 0:
            self.dense = False
        elif not self.dense:
            found = self.learner.compare_weights(version)
            self.dense = found.changed_share > MOST_CHANGED
            if self.dense:
                logger.warning(
                    "weight_sync.delta: %.0f %% of the weights' elements have changed since version %d, so all are "
                    "sent; they are compared again in %d updates",
                    100 * found.changed_share,
                    common,
                    self.cfg.full_every - turn + 1,
                )
            elif found.before == common:
                self.delta = found

    def swap(self, version: int) -> None:
        met = self.met
        if met is None or met.world != self.world or not self.learner.is_in(met):
            met = self.connect(self.engine.replicas)
        try:
            if self.delta is not None and self.stream_delta(met, version, self.delta):
                nbytes, share = self.delta.nbytes, self.delta.changed_share
                self.sent = {"bytes": float(nbytes), "full": 0.0, "changed_share": share}
            else:
                nbytes = self.stream(met, self.engine.replicas, version)
                self.sent = {"bytes": float(nbytes), "full": 1.0}
        except EngineError as error:
            # What is left of the group cannot be used again: its members wait for different things.
            self.met = None
            raise EngineError(f"weight_sync=broadcast: version {version} did not get through: {error}") from error
        self.met, self.common = met, version
        self.updates += 1

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

    def stream(self, met: Meeting, replicas: Sequence[Control], version: int) -> int:
        """All weights to these replicas; their bytes.

        Raises:
            EngineError: a peer was lost, or the deadline passed.
            TrainingError: a worker has parameters that nothing was sent for.
        """
        specs = self.learner.weight_specs()
        rows, bucket = [spec.to_row() for spec in specs], bucket_size(specs)
        calls: dict[str, Callable[[], Any]] = {
            control.name: partial(control.call_workers, "shoal_receive", version, rows, bucket, self.cfg.delta)
            for control in replicas
        }
        calls[LEARNER] = partial(self.learner.send_weights, met, version)
        found = run_together(calls, self.cfg.timeout)
        for name, workers in found.items():
            for row in workers if name != LEARNER else ():
                if row["missing"]:
                    raise TrainingError(
                        f"weight_sync=broadcast: {name} has {len(row['missing'])} parameters that no weight of the "
                        f"learner went to: {', '.join(row['missing'][:5])}; its model is another one"
                    )
        return sum(spec.nbytes for spec in specs)

    def stream_delta(self, met: Meeting, version: int, delta: DeltaSize) -> bool:
        """What the learner found to have changed, to all replicas; whether all of them then have its weights.

        Raises:
            EngineError: a peer was lost, or the deadline passed.
        """
        rows = [spec.to_row() for spec in self.learner.weight_specs()]
        calls: dict[str, Callable[[], Any]] = {
            control.name: partial(control.call_workers, "shoal_receive_delta", version, rows)
            for control in self.engine.replicas
        }
        calls[LEARNER] = partial(self.learner.send_delta, met)
        found = run_together(calls, self.cfg.timeout)
        wrong = [
            f"{control.name}: {row['wrong']}"
            for control in self.engine.replicas
            for row in found[control.name]
            if row["wrong"]
        ]
        if wrong:
            logger.warning(
                "weight_sync.delta: what changed from version %d to %d could not be used, so all weights are sent: %s",
                delta.before,
                delta.after,
                "; ".join(wrong)[:500],
            )
            return False
        return True

    def close(self) -> None:
        self.met = None
        self.learner.leave()
