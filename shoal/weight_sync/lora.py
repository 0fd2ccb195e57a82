"""Adapters alone: a few megabytes on disk, taken by the running vLLM. The base is frozen on both sides."""

from __future__ import annotations

import shutil
from pathlib import Path

from shoal.config.nodes.parts import WeightSyncConfig
from shoal.engines.servers.control import Control
from shoal.errors import ConfigError
from shoal.files import replace_folder
from shoal.learners.base import Learner
from shoal.weight_sync.check import SelfCheck
from shoal.weight_sync.servers import ReplicaEngine, ServerSync
from shoal.wire.versions import write_version

ADAPTER = "policy"


class LoraSync(ServerSync):
    """Adapters are written to `folder`/version_N, the newest stays; each has a path of its own, because vLLM knows
    adapters, and what its prefix cache holds of them, by path.

    Workers note the version in the folder that an adapter was really loaded from, so a swap that failed in silence
    shows when they are asked.

    Raises:
        ConfigError: a server takes adapters of a lower rank only, or none.
    """

    def __init__(
        self, cfg: WeightSyncConfig, learner: Learner, engine: ReplicaEngine, check: SelfCheck, folder: Path, rank: int
    ) -> None:
        super().__init__(cfg, learner, engine, check)
        self.folder = folder
        self.newest: Path | None = None
        for control in engine.replicas:
            if control.max_lora_rank < rank:
                most = control.max_lora_rank
                what = f"takes adapters of rank {most} at most" if most else "was started without --enable-lora"
                raise ConfigError(
                    f"weight_sync=lora: {control.name} {what}, but model.lora.r={rank}: start it with "
                    f"--enable-lora --max-lora-rank {rank}, or lower model.lora.r"
                )

    def _write(self, folder: Path, version: int) -> None:
        self.learner.save_adapter(folder)
        write_version(folder, version)

    def prepare(self, version: int) -> None:
        path = self.folder / f"version_{version}"
        replace_folder(path, lambda partial: self._write(partial, version))
        self.newest = path

    def swap(self, version: int) -> None:
        newest = self.newest
        assert newest is not None, "prepare comes first"
        self.each("take the adapter", lambda control: control.load_adapter(ADAPTER, newest, version))
        for old in self.folder.glob("version_*"):
            if old != newest:
                shutil.rmtree(old)

    def restore(self, control: Control) -> None:
        if self.newest is not None and self.published is not None:
            control.load_adapter(ADAPTER, self.newest, self.published)

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
