"""The simplest weight sync: engine and learner share one module."""

from __future__ import annotations

from time import perf_counter

from shoal.engines.builtin.engine import TorchEngine
from shoal.weight_sync.base import PublishHandle, WeightSync
from shoal.weight_sync.check import SelfCheck


class InPlaceSync(WeightSync):
    """Nothing is copied: the engine only drops what it had derived from the old weights."""

    def __init__(self, engine: TorchEngine, check: SelfCheck) -> None:
        self.engine = engine
        self.check = check

    def publish(self, version: int, *, now: bool = False) -> PublishHandle:
        start = perf_counter()
        self.engine.refresh(version)
        refreshed = perf_counter()
        difference = self.check.run(version)
        seconds = {"refresh": refreshed - start}
        if difference is not None:
            seconds["self_check"] = perf_counter() - refreshed
        return PublishHandle(version, seconds)
