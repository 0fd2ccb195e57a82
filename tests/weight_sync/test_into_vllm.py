"""After every sync vLLM holds the learner's version and gives the learner's log-probs; faults are found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sync_models import ARCHITECTURES, a_batch, save_model

from shoal.build import build_parts
from shoal.config import ShoalConfig
from shoal.config.validate import validate
from shoal.engines.base import Request, SamplingParams
from shoal.engines.vllm.server_engine import VllmServerEngine
from shoal.errors import TrainingError
from shoal.tasks import story
from shoal.training.parts import Parts
from shoal.types import Segment
from shoal.weight_sync import broadcast
from shoal.wire.stream import WeightSpec, receive

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
pytest.importorskip("vllm", reason="vLLM is not installed")

from shoal.engines.vllm.inside.worker import ShoalWorker  # noqa: E402 - needs vLLM

TOLERANCE = 2e-5
Make = Callable[..., Parts]


def completed(engine: Any) -> Iterator[Any]:
    """Outputs as they finish, until nothing is in flight."""
    while engine.in_flight:
        yield from engine.poll(1.0)


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
    parts.learner.train(a_batch(parts.learner.version), parts.sync)
    if parts.policy.lora and parts.learner.version == 1:
        parts.learner.train(a_batch(1), parts.sync)  # the first step moves one factor off 0, the second both
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


def workers_model(parts: Parts) -> Any:
    """vLLM's module, which is in this process."""
    executor = parts.engine.llm.model_executor  # type: ignore[attr-defined]
    return executor.driver_worker.worker.model_runner.get_model()


def test_planted_faults_are_found(make_parts: Make, monkeypatch: pytest.MonkeyPatch):
    """A stale head, an unmapped tensor, a swap that fails in silence, a cache that is not reset; one engine for all."""
    parts = make_parts("broadcast", "llama")
    parts.sync.publish(0).wait()
    model, control = workers_model(parts), parts.engine.replicas[0]  # type: ignore[attr-defined]
    load = type(model).load_weights

    def without(what: str, claim: bool) -> Callable[[Any], set[str]]:
        def load_weights(weights: Any) -> set[str]:
            found = load(model, ((name, one) for name, one in weights if name != what))
            return found | {what} if claim else found

        return load_weights

    def publishing(said: str) -> None:
        train(parts)
        with pytest.raises(TrainingError, match=said):
            parts.sync.publish(parts.learner.version)
        # As if the run went on: the next publication mends it.
        parts.sync.published = None  # type: ignore[attr-defined]
        control.resume()

    with monkeypatch.context() as patch:
        patch.setattr(model, "load_weights", without("lm_head.weight", claim=True), raising=False)
        publishing("log-probs differ from the learner's by .* its weights are stale")
    with monkeypatch.context() as patch:
        patch.setattr(model, "load_weights", without("model.norm.weight", claim=False), raising=False)
        publishing(r"has 1 parameters that no weight of the learner went to: model\.norm\.weight")
    with monkeypatch.context() as patch:
        patch.setattr(ShoalWorker, "shoal_receive", lambda self, *_: drained(self, *_))
        publishing("was published, but worker 0 of vLLM in this process holds")
    parts.sync.publish(parts.learner.version).wait()
    with monkeypatch.context() as patch:
        patch.setattr(control, "reset_prefix_cache", lambda: None)
        publishing("its prefix cache was not reset")
    parts.sync.publish(parts.learner.version).wait()


def test_what_has_changed_reaches_vllm_as_all_weights_do(make_parts: Make, monkeypatch: pytest.MonkeyPatch):
    def delta(cfg: ShoalConfig) -> None:
        cfg.weight_sync.delta = True

    monkeypatch.setattr(broadcast, "MOST_CHANGED", 1.0)  # of float32 weights nearly all change
    parts = make_parts("broadcast", "qwen3", delta)
    sync: Any = parts.sync
    sync.publish(0).wait()
    for _ in range(2):
        train(parts)
        sync.publish(parts.learner.version).wait()
        assert sync.metrics()["full"] == 0
        model = workers_model(parts)
        found = {name: one.clone() for name, one in model.named_parameters()}
        sync.stream(sync.met, parts.engine.replicas, parts.learner.version)
        assert all(torch.equal(one, found[name]) for name, one in model.named_parameters())


def drained(worker: Any, version: int, rows: Any, bucket: int, delta: bool) -> dict[str, Any]:
    """Takes the weights from the wire and puts them nowhere."""
    specs = [WeightSpec.from_row(row) for row in rows]
    for _ in receive(worker.shoal_group, specs, bucket, worker.device):
        pass
    return {**worker.shoal_status(), "missing": []}


def test_an_adapter_that_was_not_taken_is_found(make_parts: Make, monkeypatch: pytest.MonkeyPatch):
    parts = make_parts("lora", "qwen2")
    parts.sync.publish(0).wait()
    train(parts)
    monkeypatch.setattr(parts.engine.replicas[0], "load_adapter", lambda *_: None)  # type: ignore[attr-defined]
    with pytest.raises(TrainingError, match="version 2 was published, but worker 0 of vLLM in this process holds 0"):
        parts.sync.publish(2)


def test_requests_in_flight_are_drained_kept_or_asked_again(make_parts: Make):
    parts = make_parts("shared", "qwen3")
    engine, sync = parts.engine, parts.sync
    sync.publish(0).wait()
    for mode in ("drain", "keep", "abort"):
        sync.cfg.in_flight = mode  # type: ignore[attr-defined]
        old = engine.version
        requests = [
            Request(f"{mode} {n}", tuple(range(5, 20)), n, SamplingParams(4 if n == 0 else 120)) for n in range(6)
        ]
        engine.submit(requests)
        outputs = completed(engine)
        found = [next(outputs)]
        # The weights must move so little that completions still may have both versions.
        parts.learner.train(a_batch(old), sync)
        sync.publish(parts.learner.version).wait()
        new = engine.version
        found += outputs
        assert sorted(one.request_id for one in found) == sorted(request.id for request in requests)
        versions = {one.request_id: [version for _, version in one.versions] for one in found}
        late = [versions[request.id] for request in requests[1:] if request.id != found[0].request_id]
        expected = {"drain": [old], "keep": [old, new], "abort": [new]}[mode]
        assert expected in late and all(one in (expected, [old]) for one in late)
        # Each token has the log-prob of the version that it was sampled with; the learner has the newest only.
        for one in found:
            if [version for _, version in one.versions] == [new]:
                [theirs] = parts.learner.logprobs(
                    [Segment(list(range(5, 20)), one.token_ids, one.logprobs, [True] * len(one.token_ids))]
                )
                np.testing.assert_allclose(one.logprobs, theirs, atol=TOLERANCE)


@pytest.mark.parametrize("model", ["qwen2", "llama"])
def test_two_tensor_parallel_workers_take_their_shards(make_parts: Make, model: str):
    def two(cfg: ShoalConfig) -> None:
        cfg.engine.vllm.tensor_parallel = 2

    parts = make_parts("broadcast", model, two)
    parts.sync.publish(0).wait()
    for _ in range(2):
        train(parts)
        assert "self_check" in parts.sync.publish(parts.learner.version).wait()
    assert max(parts.sync.check.differences()) <= TOLERANCE  # type: ignore[attr-defined]


@pytest.mark.slow
def test_two_launched_servers_take_one_broadcast_at_once(make_parts: Make):
    def two(cfg: ShoalConfig) -> None:
        cfg.engine.kind, cfg.engine.vllm.servers = "vllm_server", 2

    parts = make_parts("broadcast", "qwen2", two)
    engine = parts.engine
    assert isinstance(engine, VllmServerEngine)
    requests = [Request(str(n), (5, 6, n + 7), n, SamplingParams(8), group=str(n)) for n in range(8)]
    parts.sync.publish(0).wait()
    for _ in range(2):
        train(parts)
        assert "self_check" in parts.sync.publish(parts.learner.version).wait()
        held = [control.call_workers("shoal_status")[0]["version"] for control in engine.replicas]
        assert held == [parts.learner.version] * 2
        engine.submit(requests)
        assert {flight.server.url for flight in engine.flights.values()} == {one.url for one in engine.servers}
        for output in completed(engine):
            context = list(requests[int(output.request_id)].prompt_ids)
            trained = [True] * len(output.token_ids)
            [theirs] = parts.learner.logprobs([Segment(context, output.token_ids, output.logprobs, trained)])
            np.testing.assert_allclose(output.logprobs, theirs, atol=TOLERANCE)
