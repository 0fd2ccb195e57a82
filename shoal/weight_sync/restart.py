"""The simplest way into a server: a checkpoint, and the server started again on it."""

from __future__ import annotations

import shutil
from pathlib import Path

from shoal.config.nodes.parts import WeightSyncConfig
from shoal.engines.servers.control import Control
from shoal.files import replace_folder
from shoal.learners.base import Learner
from shoal.weight_sync.check import SelfCheck
from shoal.weight_sync.servers import ReplicaEngine, ServerSync
from shoal.wire.versions import write_version


class RestartSync(ServerSync):
    """Checkpoints are written while the old server serves, complete or absent, in `folder`/version_N; the newest stays.

    A worker reads its version from the folder that it loaded. `fresh` says that the servers were just started from the
    very weights that version 0 is, which the first self-check proves.
    """

    def __init__(
        self,
        cfg: WeightSyncConfig,
        learner: Learner,
        engine: ReplicaEngine,
        check: SelfCheck,
        folder: Path,
        *,
        fresh: bool,
    ) -> None:
        super().__init__(cfg, learner, engine, check)
        self.folder = folder
        self.fresh = fresh
        self.newest: Path | None = None

    def _write(self, folder: Path, version: int) -> None:
        self.learner.save_merged(folder)
        write_version(folder, version)

    def prepare(self, version: int) -> None:
        if version == 0 and self.fresh:
            return
        path = self.folder / f"version_{version}"
        replace_folder(path, lambda partial: self._write(partial, version))
        for old in self.folder.glob("version_*"):
            if old != path:
                shutil.rmtree(old)
        self.newest = path

    def swap(self, version: int) -> None:
        newest = self.newest
        if newest is None:
            self.each("take version 0", lambda control: control.call_workers("shoal_hold", version))
            return
        self.each("restart", lambda control: control.restart(newest))

    def restore(self, control: Control) -> None:
        if self.newest is None:
            control.call_workers("shoal_hold", 0)
        # Otherwise it was started again on the newest checkpoint, which says its version.

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
