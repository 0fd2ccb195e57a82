"""Weights through memory that the learner and the engine's processes share: two buffers, written in turn."""

from __future__ import annotations

import shutil
from pathlib import Path

from shoal.config.nodes.parts import WeightSyncConfig
from shoal.engines.servers.control import Control
from shoal.errors import TrainingError
from shoal.learners.base import Learner
from shoal.weight_sync.check import SelfCheck
from shoal.weight_sync.servers import ReplicaEngine, ServerSync
from shoal.wire.shared import memory_file


class BufferSync(ServerSync):
    """The learner writes a version into the buffer that the version before is not in, while the engine samples; each
    process then copies it. So neither waits for the other, and a process that is started again finds the newest.
    """

    def __init__(
        self, cfg: WeightSyncConfig, learner: Learner, engine: ReplicaEngine, check: SelfCheck, folder: Path
    ) -> None:
        super().__init__(cfg, learner, engine, check)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.files = [memory_file(folder / f"weights_{number}") for number in range(2)]
        for file in self.files:
            file.unlink(missing_ok=True)
        self.written = 0
        self.newest: tuple[int, Path] | None = None

    def prepare(self, version: int) -> None:
        file = self.files[self.written % 2]
        self.learner.write_weights(file, version)
        self.written += 1
        self.newest = version, file

    def swap(self, version: int) -> None:
        for found in self.each("take the weights", self._hand_over).values():
            if found["missing"]:
                raise TrainingError(
                    f"weight_sync=shared: {len(found['missing'])} parameters of the engine were not among the "
                    f"learner's weights: {', '.join(found['missing'][:5])}; its model is another one"
                )

    def _hand_over(self, control: Control) -> dict[str, list[str]]:
        assert self.newest is not None, "prepare comes first"
        version, file = self.newest
        rows = [spec.to_row() for spec in self.learner.weight_specs()]
        [found] = control.call_workers("shoal_take", version, str(file), rows)
        return dict(found)

    def restore(self, control: Control) -> None:
        if self.newest is not None:
            self._hand_over(control)

    def close(self) -> None:
        for file in self.files:
            file.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
