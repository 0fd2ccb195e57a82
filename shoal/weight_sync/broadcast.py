"""Weights through a process group of the learner and every worker of every vLLM: Gloo on CPUs, NCCL between GPUs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from logging import getLogger
from typing import Any

import torch

from shoal.config.nodes.parts import WeightSyncConfig
from shoal.engines.vllm.control import VllmControl
from shoal.errors import EngineError, TrainingError
from shoal.learners.base import Learner
from shoal.weight_sync.check import SelfCheck
from shoal.weight_sync.together import run_together
from shoal.weight_sync.vllm import VllmEngine, VllmSync
from shoal.wire.stream import WeightGroup, bucket_size, listen, send

logger = getLogger(__name__)

LEARNER = "the learner"


class BroadcastSync(VllmSync):
    """Tensors leave one after another as the learner gathers them; workers put them where vLLM's loaders say.

    Full tensors go to every worker, which takes its own shard under tensor parallelism. Beside the weights a worker
    holds the largest tensor once, the learner one bucket of small ones.
    """

    def __init__(
        self, cfg: WeightSyncConfig, learner: Learner, engine: VllmEngine, check: SelfCheck, device: torch.device
    ) -> None:
        super().__init__(cfg, learner, engine, check)
        # NCCL carries what is on a GPU; everything else goes through memory.
        self.device = device if device.type == "cuda" else torch.device("cpu")
        self.store = listen(cfg.host, cfg.timeout)
        self.groups = count()
        self.group: WeightGroup | None = None

    def swap(self, version: int) -> None:
        group = self.group or self.connect(self.engine.controls)
        try:
            self.stream(group, self.engine.controls, version)
        except EngineError as error:
            # What is left of the group cannot be used again: its members wait for different things.
            self.group = None
            raise EngineError(f"weight_sync=broadcast: version {version} did not get through: {error}") from error
        self.group = group

    def restore(self, control: VllmControl) -> None:
        # The group died with the server; the next publication makes another.
        self.group = None
        version = self.learner.version
        if version != self.published:
            self.publish(version, now=True)
            return
        with self.weights:
            self.stream(self.connect([control]), [control], version)

    def connect(self, controls: Sequence[VllmControl]) -> WeightGroup:
        """A group of the learner, rank 0, and the workers of these vLLMs.

        Raises:
            EngineError: one of them did not come in time.
        """
        name = f"weights {next(self.groups)}"
        world = 1 + sum(control.tensor_parallel for control in controls)
        host, seconds = self.cfg.host, self.cfg.timeout
        calls: dict[str, Callable[[], Any]] = {
            LEARNER: partial(WeightGroup, self.store, name, 0, world, seconds, self.device, host)
        }
        rank = 1
        for control in controls:
            calls[control.name] = partial(
                control.call_workers, "shoal_join", host, self.store.port, name, rank, world, seconds
            )
            rank += control.tensor_parallel
        try:
            group: WeightGroup = run_together(calls, seconds)[LEARNER]
        except EngineError as error:
            raise EngineError(
                f"weight_sync=broadcast: no group of {world} on {host}:{self.store.port}: {error}; workers on other "
                "machines need weight_sync.host=ADDRESS of this one, weight_sync.timeout sets how long is waited"
            ) from error
        return group

    def stream(self, group: WeightGroup, controls: Sequence[VllmControl], version: int) -> None:
        """All weights to these vLLMs.

        Raises:
            EngineError: a peer was lost, or the deadline passed.
            TrainingError: a worker has parameters that nothing was sent for.
        """
        specs = self.learner.weight_specs()
        rows, bucket = [spec.to_row() for spec in specs], bucket_size(specs)
        calls: dict[str, Callable[[], Any]] = {
            control.name: partial(control.call_workers, "shoal_receive", version, rows, bucket) for control in controls
        }
        calls[LEARNER] = partial(send, group, self.learner.named_weights(), bucket, self.device)
        found = run_together(calls, self.cfg.timeout)
        for name, workers in found.items():
            for row in workers if name != LEARNER else ():
                if row["missing"]:
                    raise TrainingError(
                        f"weight_sync=broadcast: {name} has {len(row['missing'])} parameters that no weight of the "
                        f"learner went to: {', '.join(row['missing'][:5])}; its model is another one"
                    )

    def close(self) -> None:
        self.group = None
