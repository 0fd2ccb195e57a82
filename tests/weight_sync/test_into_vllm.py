"""After every sync vLLM holds the learner's version and gives the learner's log-probs; faults are found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from vllm_models import ARCHITECTURES, a_batch, save_model

from shoal.config import ShoalConfig
from shoal.config.validate import validate
from shoal.tasks import story
from shoal.training.build import build_parts
from shoal.training.parts import Parts

pytestmark = [pytest.mark.vllm]
pytest.importorskip("vllm", reason="vLLM is not installed")

TOLERANCE = 2e-5
Make = Callable[..., Parts]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: save_model(name, tmp_path_factory.mktemp(name)) for name in ARCHITECTURES}


@pytest.fixture
def make_parts(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Make]:
    """Learner, vLLM in this process and a weight sync between them, in float32."""
    monkeypatch.setattr(story, "TRAIN_PROBLEMS", 8)
    monkeypatch.setattr(story, "HELD_OUT_PROBLEMS", 4)
    made: list[Parts] = []

    def make(kind: str, model: str, change: Callable[[ShoalConfig], None] = lambda cfg: None) -> Parts:
        cfg = ShoalConfig()
        cfg.model.name = str(models[model])
        cfg.runtime.target, cfg.runtime.mixed_precision = "cpu", "none"
        cfg.engine.kind, cfg.weight_sync.kind = "vllm", kind
        cfg.engine.max_batch = 16
        cfg.engine.vllm.cache_gib = 0.25
        cfg.weight_sync.self_check_every, cfg.weight_sync.self_check_tolerance = 1, TOLERANCE
        cfg.weight_sync.timeout = 60.0
        cfg.optimizer.lr = 0.02
        if kind == "lora":
            cfg.model.train = "lora"
        change(cfg)
        validate(cfg)
        made.append(build_parts(cfg, {}, tmp_path / "run"))
        return made[-1]

    yield make
    for parts in made:
        parts.close()


def train(parts: Parts) -> None:
    """One batch; the weights move far enough to be seen in log-probs."""
    probe = parts.sync.check.probe  # type: ignore[attr-defined]
    before = parts.learner.logprobs(probe)
    parts.learner.train(a_batch(parts.learner.version), parts.sync.writing)
    if parts.policy.lora and parts.learner.version == 1:
        parts.learner.train(a_batch(1), parts.sync.writing)  # the first step moves one factor off 0, the second both
    after = parts.learner.logprobs(probe)
    assert np.abs(np.concatenate(before) - np.concatenate(after)).max() > 0.02


@pytest.mark.parametrize("model", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["broadcast", "shared", "lora"])
def test_after_each_publication_vllm_has_the_learners_version_and_log_probs(make_parts: Make, kind: str, model: str):
    parts = make_parts(kind, model)
    parts.sync.publish(0).wait()
    for _ in range(3):
        train(parts)
        handle = parts.sync.publish(parts.learner.version)
        assert handle.version == parts.engine.version == parts.learner.version
        assert "self_check" in handle.wait()
    differences = parts.sync.check.differences()  # type: ignore[attr-defined]
    assert max(differences) <= TOLERANCE
    assert len(parts.sync.check.probe[-1].context_ids) > 300  # type: ignore[attr-defined]
