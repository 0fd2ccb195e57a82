"""The thread that owns the built-in engine: it decodes, pauses and answers whoever asks from other threads."""

from __future__ import annotations

import json
from collections.abc import Callable
from queue import Queue
from typing import Any

import pytest
from engine_models import make_requests
from starlette.testclient import TestClient

from shoal.engines.base import EngineOutput, Request, SamplingParams
from shoal.engines.builtin.engine import TorchEngine
from shoal.engines.processes.app import make_app
from shoal.engines.processes.held import HeldEngine
from shoal.types import Segment, StopReason

SECONDS = 60.0


@pytest.fixture
def engine(qwen: Any, tokenizer: Any) -> TorchEngine:
    made = TorchEngine(qwen, tokenizer, max_batch=8)
    made.refresh(0)
    return made


def ask(held: HeldEngine, requests: list[Request]) -> Queue[EngineOutput]:
    found: Queue[EngineOutput] = Queue()
    held.ask([(request, found.put) for request in requests])
    return found


def gathered(found: Queue[EngineOutput], count: int) -> dict[str, EngineOutput]:
    outputs = [found.get(timeout=SECONDS) for _ in range(count)]
    return {output.request_id: output for output in outputs}


def long_requests() -> list[Request]:
    return make_requests(8, 5, SamplingParams(24))


def test_it_samples_what_the_engine_samples(engine: TorchEngine) -> None:
    expected = {one.request_id: one.token_ids for one in engine.generate(long_requests())}
    found = gathered(ask(HeldEngine(engine), long_requests()), 40)
    assert {name: output.token_ids for name, output in found.items()} == expected


def test_a_pause_that_drains_waits_for_requests_in_flight_and_holds_new_ones(engine: TorchEngine) -> None:
    held = HeldEngine(engine)
    first = ask(held, long_requests())
    pausing = held.pause("drain")
    later = ask(held, [Request("later", (3, 4), 0, SamplingParams(4))])
    pausing.result(SECONDS)
    assert first.qsize() == 40 and later.empty() and engine.in_flight == 0
    held.resume().result(SECONDS)
    assert later.get(timeout=SECONDS).request_id == "later"


@pytest.mark.parametrize(("mode", "reasons"), [("keep", {"stop", "length"}), ("abort", {"stop", "length", "abort"})])
def test_other_pauses_stop_at_once(engine: TorchEngine, mode: str, reasons: set[str]) -> None:
    held = HeldEngine(engine)
    found = ask(held, make_requests(40, 10, SamplingParams(24)))
    held.pause(mode).result(SECONDS)
    assert engine.in_flight == (400 - found.qsize() if mode == "keep" else 0)
    steps = engine.steps
    assert held.call(lambda: engine.steps).result(SECONDS) == steps
    held.resume().result(SECONDS)
    outputs = gathered(found, 400)
    assert {output.stop_reason.value for output in outputs.values()} <= reasons
    assert any(output.stop_reason is StopReason.ABORT for output in outputs.values()) == (mode == "abort")


def test_requests_end_early_where_nobody_waits_for_them(engine: TorchEngine) -> None:
    held = HeldEngine(engine)
    held.pause("keep").result(SECONDS)
    found = ask(held, [Request("a", (3, 4), 0, SamplingParams(4))])
    held.withdraw(["a", "unknown"])
    assert found.get(timeout=SECONDS).stop_reason is StopReason.ABORT
    assert held.load()["waiting"] == 0


@pytest.fixture
def post(engine: TorchEngine) -> Callable[..., Any]:
    client = TestClient(make_app(HeldEngine(engine), "secret"), headers={"Authorization": "Bearer secret"})
    return lambda path, **body: client.post(f"/shoal/{path}", json=body)


def test_the_routes_sample_score_and_refuse(engine: TorchEngine, post: Callable[..., Any]) -> None:
    segment = Segment([3, 4], [5, 6], [0.0] * 2, [True] * 2)
    [expected] = engine.logprobs([segment])
    form = {"seed": 0, "max_tokens": 3, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "stop": [], "ends": []}
    asked = [
        {"id": "sampled", "prompt": [3, 4], **form},
        {"id": "scored", "prompt": [3, 4, 5, 6], "score_from": 2},
        {"id": "refused", "prompt": [], **form},
    ]
    lines = post("generate", requests=asked).text.splitlines()
    found = {row["id"]: row for row in map(json.loads, lines)}
    assert found["scored"]["logprobs"] == pytest.approx(expected)
    assert found["sampled"]["versions"] == [[0, 0]] and len(found["sampled"]["tokens"]) <= 3
    assert "the prompt is empty" in found["refused"]["error"]


def test_only_the_methods_of_a_weight_sync_can_be_called(post: Callable[..., Any]) -> None:
    [status] = post("call", method="shoal_status", arguments=[]).json()["results"]
    assert status["version"] == 0
    for method in ("__init__", "_take", "shoal_hold"):
        assert post("call", method=method, arguments=[]).status_code == 422
    failed = post("call", method="shoal_take", arguments=[1, "/no/such/file", []])
    assert failed.status_code == 422 and "are gone" in failed.json()["error"]


def test_a_token_for_the_self_check_waits_for_no_rollout(engine: TorchEngine) -> None:
    [alone] = engine.generate([Request("a", (3, 4, 5), 0, SamplingParams(1))])
    engine.submit(long_requests())
    token, logprob = engine.next_token((3, 4, 5))
    assert ([token], [logprob]) == (alone.token_ids, pytest.approx(alone.logprobs))
    assert engine.in_flight == 40
