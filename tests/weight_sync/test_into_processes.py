"""The built-in engine in processes of its own: samples as in the learner's process, takes weights, is revived."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import torch
from sync_models import a_batch

from shoal.build import build_parts
from shoal.config import ShoalConfig
from shoal.engines.base import EngineOutput, Request, SamplingParams
from shoal.engines.builtin.engine import TorchEngine
from shoal.engines.processes.app import KEY_VARIABLE
from shoal.errors import EngineError
from shoal.tasks import story
from shoal.training.parts import Parts
from shoal.types import Segment
from shoal.wire.buffers import read_buffer, write_buffer
from shoal.wire.stream import WeightSpec


def settings(small_model: Path, **changes: Any) -> ShoalConfig:
    cfg = ShoalConfig()
    cfg.model.name = str(small_model)
    cfg.runtime.target, cfg.runtime.mixed_precision = "cpu", "none"
    cfg.optimizer.lr = 0.05
    cfg.weight_sync.self_check_every = 1
    cfg.engine.processes, cfg.engine.max_batch = 1, 8
    cfg.weight_sync.kind = "broadcast"
    for name, value in changes.items():
        node, _, leaf = name.partition("_of_")
        setattr(getattr(cfg, leaf), node, value)
    return cfg


@pytest.fixture(scope="module")
def build(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Parts]]:
    made: list[Parts] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(story, "TRAIN_PROBLEMS", 8)
        patched.setattr(story, "HELD_OUT_PROBLEMS", 4)

        def make(**changes: Any) -> Parts:
            torch.manual_seed(0)
            made.append(build_parts(settings(small_model, **changes), {}, tmp_path_factory.mktemp("run")))
            made[-1].sync.publish(0).wait()
            return made[-1]

        yield make
        for parts in made:
            parts.close()


@pytest.fixture(scope="module")
def two(build: Callable[..., Parts]) -> Parts:
    """Two processes, with weights by broadcast; requests in flight go on at an update."""
    return build(processes_of_engine=2, in_flight_of_weight_sync="keep")


def requests(count: int, name: str = "") -> list[Request]:
    sampling = SamplingParams(40, temperature=0.8)
    return [Request(f"{name}{n}", (3, 4 + n // 4 % 50, 5), n, sampling, f"{name}{n // 4}") for n in range(count)]


def ids(outputs: list[EngineOutput]) -> dict[str, list[int]]:
    return {output.request_id: output.token_ids for output in outputs}


def rest(parts: Parts) -> list[EngineOutput]:
    found = []
    while parts.engine.in_flight:
        found += parts.engine.poll(1.0)
    return found


def in_this_process(parts: Parts, model: Any = None) -> TorchEngine:
    engine = TorchEngine(model or parts.policy.causal_lm, parts.policy.tokenizer, max_batch=8)
    engine.refresh(0)
    return engine


def train(parts: Parts) -> int:
    parts.learner.train(a_batch(parts.learner.version), parts.sync)
    return parts.learner.version


def some_are_there(parts: Parts) -> list[EngineOutput]:
    found: list[EngineOutput] = []
    while not found:
        found = parts.engine.poll(1.0)
    return found


def process_of(parts: Parts, number: int) -> Any:
    return parts.engine.servers[number].process.process  # type: ignore[attr-defined]


@pytest.mark.slow
def test_processes_sample_what_the_engine_in_this_process_samples_at_every_version(two: Parts):
    for _ in range(2):
        version = train(two)
        assert two.sync.publish(version).wait()["self_check"] > 0
        found, expected = two.engine.generate(requests(16)), in_this_process(two).generate(requests(16))
        assert ids(found) == ids(expected)
        for mine, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(mine.logprobs, theirs.logprobs, atol=1e-5)
            assert mine.versions == [(0, version)] and mine.stop_reason is theirs.stop_reason
    assert [one.logprobs([Segment([3, 4], [5], [0.0], [True])]) for one in two.engine.replicas] == [
        two.engine.logprobs([Segment([3, 4], [5], [0.0], [True])])
    ] * 2


@pytest.mark.slow
def test_completions_that_go_on_at_an_update_have_each_token_by_one_version_alone(two: Parts):
    before = two.learner.version
    models = {before: deepcopy(two.policy.causal_lm)}
    now = train(two)
    models[now] = two.policy.causal_lm
    two.engine.submit(requests(400))
    outputs = some_are_there(two)
    two.sync.publish(now).wait()
    outputs += rest(two)
    assert sorted(map(int, ids(outputs))) == list(range(400))
    mixed = [output for output in outputs if len(output.versions) > 1]
    assert mixed and {len(output.versions) for output in mixed} == {2}
    prompts = {request.id: list(request.prompt_ids) for request in requests(400)}
    for output in outputs:
        starts = [*(start for start, _ in output.versions), len(output.token_ids)]
        for (start, version), end in zip(output.versions, starts[1:], strict=True):
            context = prompts[output.request_id] + output.token_ids[:start]
            sampled = output.token_ids[start:end]
            segment = Segment(context, sampled, [0.0] * len(sampled), [True] * len(sampled))
            [expected] = in_this_process(two, models[version]).logprobs([segment], temperature=0.8)
            np.testing.assert_allclose(output.logprobs[start:end], expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_dies_or_hangs_is_started_again_with_the_weights_of_now(
    two: Parts, blow: signal.Signals, monkeypatch: pytest.MonkeyPatch
):
    expected = in_this_process(two).generate(requests(400))
    for one in (two.engine, *two.engine.replicas):
        monkeypatch.setattr(one, "timeout", 3.0 if blow is signal.SIGSTOP else 60.0)
    monkeypatch.setattr(two.engine, "restarts_left", 1)
    two.engine.submit(requests(400))
    outputs = some_are_there(two)
    os.kill(process_of(two, 0).pid, blow)
    outputs += rest(two)
    assert ids(outputs) == ids(expected) and len(outputs) == 400
    assert two.engine.restarts_left == 0  # type: ignore[attr-defined]
    assert two.engine.statistics()["restarts"] == 1


@pytest.mark.slow
def test_a_process_that_dies_at_an_update_is_given_the_new_weights(two: Parts, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(two.engine, "restarts_left", 1)
    version = train(two)
    os.kill(process_of(two, 1).pid, signal.SIGKILL)
    process_of(two, 1).wait(60)
    two.sync.publish(version).wait()
    assert [one.call_workers("shoal_status")[0]["version"] for one in two.engine.replicas] == [version] * 2  # type: ignore[attr-defined]
    assert ids(two.engine.generate(requests(16))) == ids(in_this_process(two).generate(requests(16)))


@pytest.mark.slow
def test_requests_are_spread_ended_early_and_refused_one_by_one(two: Parts):
    wrong = Request("wrong", tuple([3] * 600), 0, SamplingParams(4))
    with pytest.raises(ValueError, match="the model's positions; shorten it"):
        two.engine.submit([wrong])
    two.engine.submit(requests(200))
    assert {server.in_flight for server in two.engine.servers} == {100}  # type: ignore[attr-defined]
    some_are_there(two)
    two.engine.abort([request.id for request in requests(200)])
    reasons = [output.stop_reason.value for output in rest(two)]
    assert "abort" in reasons


@pytest.mark.slow
def test_nobody_without_the_key_is_answered(two: Parts):
    url = two.engine.servers[0].url  # type: ignore[attr-defined]
    assert httpx.get(f"{url}/health", trust_env=False).status_code == 200
    for path in ("generate", "call", "pause", "no_such_path"):
        assert httpx.post(f"{url}/shoal/{path}", json={}, trust_env=False).status_code == 401


LAUNCH = """
import sys, time
from pathlib import Path
from shoal.engines.processes.engine import EngineProcess
process = EngineProcess(
    sys.argv[1:], {}, host="127.0.0.1", port=0, log=Path("engine.log"), start_timeout=60, key="engine"
)
print(process.process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_a_process_ends_with_the_trainer_even_if_that_is_killed(tmp_path: Path, two: Parts):
    settings = two.engine.servers[0].arguments.line()  # type: ignore[attr-defined]
    environment = {**os.environ, KEY_VARIABLE: "secret", "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCH, *settings], cwd=tmp_path, env=environment, stdout=subprocess.PIPE
    ) as trainer:
        assert trainer.stdout is not None
        child = psutil.Process(int(trainer.stdout.readline()))
        trainer.kill()
    child.wait(60)


@pytest.mark.slow
def test_weights_with_adapters_come_merged_through_shared_memory(build: Callable[..., Parts]):
    parts = build(kind_of_weight_sync="shared", train_of_model="lora", in_flight_of_weight_sync="abort")
    version = train(parts)
    parts.engine.submit(requests(200))
    outputs = some_are_there(parts)
    parts.sync.publish(version).wait()
    outputs += rest(parts)
    assert len(outputs) == 200 and {len(output.versions) for output in outputs} == {1}
    assert {output.versions[0][1] for output in outputs} == {0, version}, "those in flight were asked again"
    files = parts.sync.files  # type: ignore[attr-defined]
    version = train(parts)
    os.kill(process_of(parts, 0).pid, signal.SIGKILL)
    process_of(parts, 0).wait(60)
    parts.sync.publish(version).wait()
    assert all(file.is_file() for file in files)
    parts.sync.close()
    assert not any(file.exists() for file in files)


def test_a_buffer_of_another_version_is_refused(tmp_path: Path):
    specs = [WeightSpec("a", (3,), "float32"), WeightSpec("b", (2, 2), "bfloat16"), WeightSpec("c", (), "float32")]
    weights = {
        "a": torch.arange(3.0),
        "b": torch.ones(2, 2, dtype=torch.bfloat16),
        "c": torch.tensor(2.5),
    }
    file = tmp_path / "weights"
    with pytest.raises(EngineError, match="are gone"):
        list(read_buffer(file, specs, 0))
    write_buffer(file, specs, weights.items(), 7)
    found = dict(read_buffer(file, specs, 7))
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())
    with pytest.raises(EngineError, match="of version 7, not 8"):
        list(read_buffer(file, specs, 8))
    with pytest.raises(ValueError, match="zip"):
        write_buffer(file, specs, list(weights.items())[:2], 8)
    with pytest.raises(EngineError, match="of version -1, not 8"):
        list(read_buffer(file, specs, 8))
