"""When a broadcast sends what has changed, and when all weights; whatever it sends, workers end with the learner's."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded_vllm import RecordedEngine
from sync_models import a_batch
from worker_here import WorkerHere

from shoal.config import ShoalConfig
from shoal.errors import EngineError
from shoal.learners.local import LocalLearner
from shoal.learners.model import load_policy
from shoal.runtime import resolve_runtime
from shoal.types import Segment
from shoal.weight_sync.broadcast import BroadcastSync
from shoal.weight_sync.check import SelfCheck
from shoal.wire.snapshot import Snapshot

PROBE = [Segment([3, 4, 5], [6, 7], [0.0, 0.0], [True, True])]
Make = Callable[..., BroadcastSync]


@pytest.fixture
def make_sync(small_model: Path) -> Make:
    """A sync into two workers in this process, one of which holds weights of another dtype, if that is given."""

    def make(dtype: str = "bfloat16", lr: float = 1e-5, other: torch.dtype | None = None, **changes: Any) -> Any:
        cfg = ShoalConfig()
        cfg.model.name, cfg.model.dtype = str(small_model), dtype
        cfg.runtime.target, cfg.runtime.threads = "cpu", 1
        cfg.optimizer.lr = lr
        cfg.weight_sync.kind, cfg.weight_sync.delta, cfg.weight_sync.timeout = "broadcast", True, 60.0
        for name, value in changes.items():
            setattr(cfg.model if name == "train" else cfg.weight_sync, name, value)
        torch.manual_seed(0)
        runtime = resolve_runtime(cfg.runtime, cfg.model)
        learner = LocalLearner(load_policy(cfg.model, runtime), cfg, runtime, total_steps=10)
        engine: Any = RecordedEngine(WorkerHere(learner, "first"))
        engine.replicas.append(WorkerHere(learner, "second", other))
        sync = BroadcastSync(cfg.weight_sync, learner, engine, SelfCheck(engine, learner, PROBE, 0, 1e-4))
        sync.publish(0).wait()
        return sync

    return make


def published(sync: Any) -> float:
    """Trains a batch and publishes it; whether all weights were sent."""
    sync.learner.train(a_batch(sync.learner.version), sync)
    sync.publish(sync.learner.version).wait()
    assert all(one.has_the_learners_weights() for one in sync.engine.replicas)
    assert [one.worker.engine.version for one in sync.engine.replicas] == [sync.learner.version] * 2
    return float(sync.metrics()["full"])


@pytest.mark.parametrize("other", [None, torch.float32])
@pytest.mark.parametrize("train", ["full", "lora"])
def test_what_has_changed_is_sent_between_all_weights(make_sync: Make, other: torch.dtype | None, train: str):
    sync = make_sync(other=other, train=train, full_every=3, lr=1e-5 if train == "full" else 3e-5)
    whole = sync.metrics()["bytes"]
    assert sync.metrics()["full"] == 1 and whole == sum(spec.nbytes for spec in sync.learner.weight_specs())
    for full in (0, 0, 1, 0, 0, 1):
        assert published(sync) == full
        found = sync.metrics()
        assert found["bytes"] == whole if full else found["bytes"] < whole / 2
        assert full or 0 < found["changed_share"] < 0.2


def test_where_most_changes_all_is_sent_and_not_compared_each_time(
    make_sync: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    sync = make_sync(dtype="float32", lr=0.05, full_every=3)
    compared: list[int] = []
    plain = sync.learner.compare_weights

    def compare(version: int) -> Any:
        compared.append(version)
        return plain(version)

    monkeypatch.setattr(sync.learner, "compare_weights", compare)
    with caplog.at_level(logging.WARNING):
        assert [published(sync) for _ in range(5)] == [1] * 5
    assert compared == [1, 4]
    assert "elements have changed since version 0, so all are sent; they are compared again in 3 updates" in caplog.text


def test_a_delta_that_was_damaged_on_its_way_is_followed_by_all_weights_at_once(
    make_sync: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    sync = make_sync()
    assert published(sync) == 0
    compare = Snapshot.compare

    def damaged(self: Snapshot, *arguments: Any) -> Any:
        found = compare(self, *arguments)
        next(piece for piece in self.pieces if piece.changed).values[0] ^= 1
        return found

    with caplog.at_level(logging.WARNING), monkeypatch.context() as patched:
        patched.setattr(Snapshot, "compare", damaged)
        assert published(sync) == 1
    assert "what changed from version 1 to 2 could not be used, so all weights are sent: first: 1 of" in caplog.text
    assert published(sync) == 0


def test_a_worker_that_was_written_to_behind_the_learners_back_gets_all_weights(
    make_sync: Make, caplog: pytest.LogCaptureFixture
):
    sync: Any = make_sync()
    with torch.no_grad():
        next(sync.engine.replicas[1].model.parameters()).add_(1.0)
    with caplog.at_level(logging.WARNING):
        assert published(sync) == 1
    assert "second: 1 of" in caplog.text and "do not have their checksum" in caplog.text


def test_a_worker_without_the_version_that_a_delta_leads_from_says_so(
    make_sync: Make, caplog: pytest.LogCaptureFixture
):
    sync: Any = make_sync()
    sync.engine.replicas[0], sync.met = WorkerHere(sync.learner, "new"), None
    with caplog.at_level(logging.WARNING):
        assert published(sync) == 1
    assert "new: it leads from version 0 to 1, and version -1 is held" in caplog.text


def test_one_that_is_given_the_weights_of_now_takes_the_next_delta(make_sync: Make):
    sync: Any = make_sync()
    assert published(sync) == 0
    sync.engine.replicas[1] = WorkerHere(sync.learner, "new")
    sync.restore(sync.engine.replicas[1])
    assert sync.engine.replicas[1].has_the_learners_weights()
    assert published(sync) == 0


def test_after_an_update_that_failed_all_weights_are_sent(make_sync: Make, monkeypatch: pytest.MonkeyPatch):
    sync: Any = make_sync()
    assert published(sync) == 0
    replica, calls = sync.engine.replicas[0], []

    def pause(mode: str) -> None:
        calls.append(mode)
        if len(calls) == 1:
            raise EngineError("gone for a moment")

    monkeypatch.setattr(replica, "pause", pause)
    assert published(sync) == 1 and len(calls) == 2
    assert published(sync) == 0
