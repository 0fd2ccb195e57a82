"""Deltas into the built-in engine's processes: equal to full weights, and full ones wherever a delta does not fit."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sync_models import a_batch

from shoal.build import build_parts
from shoal.config import ShoalConfig
from shoal.config.validate import validate
from shoal.engines.base import Request, SamplingParams
from shoal.engines.builtin.engine import TorchEngine
from shoal.tasks import story
from shoal.training.parts import Parts

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    """Two processes, and a learning rate at which a step changes a few percent of the elements in bfloat16."""
    cfg = ShoalConfig()
    cfg.model.name, cfg.model.dtype = str(small_model), "bfloat16"
    cfg.runtime.target = "cpu"
    cfg.optimizer.lr = 1e-5
    cfg.engine.processes, cfg.engine.max_batch = 2, 8
    cfg.weight_sync.kind, cfg.weight_sync.delta = "broadcast", True
    cfg.weight_sync.self_check_every, cfg.weight_sync.timeout = 1, 60.0
    validate(cfg)
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(story, "TRAIN_PROBLEMS", 8)
        patched.setattr(story, "HELD_OUT_PROBLEMS", 4)
        parts = build_parts(cfg, {}, tmp_path_factory.mktemp("run"))
        try:
            parts.sync.publish(0).wait()
            yield parts
        finally:
            parts.close()


def published(parts: Parts) -> dict[str, float]:
    """Trains a batch and publishes its version; what was sent."""
    parts.learner.train(a_batch(parts.learner.version), parts.sync)
    parts.sync.publish(parts.learner.version).wait()
    assert [one.call_workers("shoal_status")[0]["version"] for one in controls(parts)] == [parts.learner.version] * len(
        controls(parts)
    )
    return dict(parts.sync.metrics())


def controls(parts: Parts) -> list[Any]:
    return list(parts.engine.replicas)


def kill(parts: Parts, number: int) -> None:
    process = parts.engine.servers[number].process.process  # type: ignore[attr-defined]
    os.kill(process.pid, signal.SIGKILL)
    process.wait(60)


def sampled(engine: Any) -> dict[str, tuple[list[int], list[float]]]:
    sampling = SamplingParams(16, temperature=0.8)
    requests = [Request(f"{n}", (3, 4 + n // 4, 5), n, sampling, f"{n // 4}") for n in range(16)]
    return {one.request_id: (one.token_ids, one.logprobs) for one in engine.generate(requests)}


def in_this_process(parts: Parts) -> TorchEngine:
    engine = TorchEngine(parts.policy.causal_lm, parts.policy.tokenizer, max_batch=8)
    engine.refresh(0)
    return engine


def has_the_learners_weights(parts: Parts) -> None:
    """The engine's samples are those of the learner's weights; and all weights sent again leave every replica's
    log-probs as they were, to the bit."""
    mine, learners = sampled(parts.engine), sampled(in_this_process(parts))
    assert {name: ids for name, (ids, _) in mine.items()} == {name: ids for name, (ids, _) in learners.items()}
    probe = parts.sync.check.probe  # type: ignore[attr-defined]
    before = [one.logprobs(probe) for one in controls(parts)]
    sync: Any = parts.sync
    sync.stream(sync.met, controls(parts), parts.learner.version)
    assert [one.logprobs(probe) for one in controls(parts)] == before
    assert all(rows == before[0] for rows in before)


def test_each_version_comes_as_what_has_changed_and_is_the_learners(two: Parts):
    for _ in range(3):
        found = published(two)
        assert found["full"] == 0 and 0 < found["changed_share"] < 0.2
        whole = sum(spec.nbytes for spec in two.learner.weight_specs())
        assert found["bytes"] < whole / 2
        has_the_learners_weights(two)


def test_a_process_that_was_started_again_gets_all_weights_and_deltas_from_then_on(two: Parts):
    restarts: Any = two.engine
    restarts.restarts_left = 1
    kill(two, 0)
    assert two.engine.revive() == 1  # type: ignore[attr-defined]
    assert published(two)["full"] == 0
    has_the_learners_weights(two)


def test_a_process_that_dies_at_an_update_has_all_given_every_weight(two: Parts):
    restarts: Any = two.engine
    restarts.restarts_left = 1
    kill(two, 1)
    assert published(two)["full"] == 1
    has_the_learners_weights(two)
    assert published(two)["full"] == 0
