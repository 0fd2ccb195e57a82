"""The built-in engine on a copy of the model, so that it works in another thread while the learner trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
import torch

from shoal.config import ShoalConfig
from shoal.engines.base import EngineOutput, Request
from shoal.engines.builtin.engine import TorchEngine
from shoal.learners.local import LocalLearner
from shoal.learners.model import Policy
from shoal.weight_sync.base import PublishHandle, WeightSync


class ApartEngine(TorchEngine):
    """One thread polls, another one gives it weights; completions that are under way go on with the new ones."""

    def __init__(self, policy: Policy, cfg: ShoalConfig) -> None:
        super().__init__(deepcopy(policy.causal_lm), policy.tokenizer, max_batch=cfg.engine.max_batch)
        self.lock = Lock()
        self.held: Callable[[Request], bool] = lambda request: False
        """Requests that do not finish for as long as this says so."""
        self.late: list[Request] = []
        self.log: list[tuple[str, int]] = []

    def submit(self, requests: Sequence[Request]) -> None:
        with self.lock:
            self.log += [(request.group, request.seed) for request in requests]
            self.late += requests

    @property
    def in_flight(self) -> int:
        return len(self.late) + super().in_flight

    def poll(self, timeout: float) -> list[EngineOutput]:
        with self.lock:
            super().submit([request for request in self.late if not self.held(request)])
            self.late = [request for request in self.late if self.held(request)]
            return super().poll(timeout)

    def abort(self, ids: Sequence[str]) -> None:
        with self.lock:
            super().submit([request for request in self.late if request.id in ids])
            self.late = [request for request in self.late if request.id not in ids]
            super().abort(ids)

    @torch.no_grad()
    def take(self, learner: LocalLearner, version: int) -> None:
        with self.lock:
            mine = dict(self.model.named_parameters())
            for name, value in learner.policy.causal_lm.named_parameters():
                mine[name].copy_(value)
            self.refresh(version)


class ApartSync(WeightSync):
    """Publishes by copying; the engine's version is confirmed by looking."""

    def __init__(self, cfg: ShoalConfig, learner: LocalLearner, engine: ApartEngine) -> None:
        self.cfg, self.learner, self.engine = cfg, learner, engine

    def may_overlap(self, version: int) -> bool:
        return True

    def publish(self, version: int, *, now: bool = False) -> PublishHandle:
        if now or self.engine.version < 0 or version % self.cfg.weight_sync.every == 0:
            self.engine.take(self.learner, version)
        return PublishHandle(self.engine.version, {})


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> list[ApartEngine]:
    """Runs of this test have such an engine; those that were made so far."""
    made: list[ApartEngine] = []

    def build_engine(cfg: ShoalConfig, learner: LocalLearner, *_: Any) -> ApartEngine:
        made.append(ApartEngine(learner.policy, cfg))
        return made[-1]

    def build_sync(cfg: ShoalConfig, learner: Any, engine: Any, check: Any, folder: Path | None) -> ApartSync:
        return ApartSync(cfg, learner, engine)

    monkeypatch.setattr("shoal.build.build_engine", build_engine)
    monkeypatch.setattr("shoal.build.build_weight_sync", build_sync)
    monkeypatch.setattr("shoal.build.check_packages", lambda cfg: None)
    monkeypatch.setattr("shoal.build.self_check", lambda *arguments: None)
    return made
