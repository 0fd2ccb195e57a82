"""Keys of `engine.vllm`: what reaches vLLM's command line, and how its servers are found and waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stub_vllm import StubVllm, stub_vllm

from effects.registry import effect
from shoal.engines.base import Request, SamplingParams
from shoal.engines.servers import process as server_process
from shoal.engines.servers.requests import RequestForm
from shoal.engines.vllm import server_engine as vllm_server
from shoal.engines.vllm.arguments import longest, policy_arguments
from shoal.engines.vllm.process import VllmProcess
from shoal.engines.vllm.server_engine import VllmServerEngine
from shoal.errors import EngineError


@pytest.fixture
def arguments(settings, make_learner):
    """vLLM's command line under changed keys, on a machine with CUDA or without."""

    def make(changes: dict[str, Any], device: str = "cpu", kind: str = "vllm_server") -> list[str]:
        cfg = settings(changes)
        cfg.engine.kind = kind
        learner = make_learner(cfg)
        runtime = replace(learner.runtime, device=torch.device(device))
        return policy_arguments(cfg, learner.policy.info, runtime).line()

    return make


@pytest.fixture
def open_engine(settings, make_learner, tmp_path: Path) -> Iterator[Any]:
    """An engine on servers, under changed keys."""
    opened: list[VllmServerEngine] = []

    def make(changes: dict[str, Any]) -> VllmServerEngine:
        cfg = settings({"engine.kind": "vllm_server", "weight_sync.kind": "broadcast", **changes})
        learner = make_learner(cfg)
        line = policy_arguments(cfg, learner.policy.info, learner.runtime)
        form = RequestForm(learner.policy.info.end_ids, learner.policy.tokenizer, line.max_model_len, longest(cfg))
        opened.append(VllmServerEngine(line, form, cfg.engine.vllm, tmp_path / "logs"))
        return opened[-1]

    yield make
    for engine in opened:
        engine.close()


@pytest.fixture
def stub() -> Iterator[StubVllm]:
    with stub_vllm() as found:
        yield found


@effect("engine.vllm.dtype")
def test_the_dtype_is_the_policys_unless_it_is_named(settings, arguments):
    assert "--dtype=float32" in arguments({})
    assert "--dtype=bfloat16" in arguments({"engine.vllm.dtype": "bfloat16"})


@effect("engine.vllm.tensor_parallel")
def test_layers_are_shared_by_as_many_devices(settings, arguments):
    assert "--tensor-parallel-size=1" in arguments({})
    line = arguments({"engine.vllm.tensor_parallel": 2})
    assert "--tensor-parallel-size=2" in line
    assert "--distributed-executor-backend=mp" in line


@effect("engine.vllm.max_model_len")
def test_vllm_has_room_for_the_longest_completion_or_as_many_tokens_as_it_is_told(settings, arguments):
    # The tiny model has 512 positions; 500 + 6 and one more, which scoring samples.
    assert "--max-model-len=507" in arguments({"data.max_prompt_tokens": 500})
    assert "--max-model-len=600" in arguments({"engine.vllm.max_model_len": 600})


@effect("engine.vllm.memory_share")
def test_the_share_of_a_gpu_is_passed_on(settings, arguments):
    assert "--gpu-memory-utilization=0.9" in arguments({}, "cuda")
    assert "--gpu-memory-utilization=0.3" in arguments({"engine.vllm.memory_share": 0.3}, "cuda")


@effect("engine.vllm.cache_gib")
def test_the_caches_size_is_passed_on(settings, arguments):
    assert f"--kv-cache-memory-bytes={2**30}" in arguments({})
    assert f"--kv-cache-memory-bytes={2**29}" in arguments({"engine.vllm.cache_gib": 0.5})


@effect("engine.vllm.eager")
def test_graphs_are_compiled_on_a_gpu_or_where_it_is_asked_for(settings, arguments):
    assert "--enforce-eager" in arguments({})
    assert "--enforce-eager" not in arguments({}, "cuda")
    assert "--enforce-eager" not in arguments({"engine.vllm.eager": "off"})


@effect("engine.vllm.prefix_cache")
def test_the_prefix_cache_can_be_switched_off(settings, arguments):
    assert "--enable-prefix-caching" in arguments({})
    assert "--no-enable-prefix-caching" in arguments({"engine.vllm.prefix_cache": False})


@effect("engine.vllm.sleep")
def test_vllm_sleeps_on_the_learners_gpu_unless_told_not_to(settings, arguments):
    assert "--enable-sleep-mode" in arguments({}, "cuda", "vllm")
    assert "--enable-sleep-mode" not in arguments({"engine.vllm.sleep": False}, "cuda", "vllm")


@effect("engine.vllm.extra_args")
def test_further_arguments_come_last(settings, arguments):
    assert arguments({"engine.vllm.extra_args": ["--block-size=64"]})[-1] == "--block-size=64"
    assert "--block-size=64" not in arguments({})


@effect("engine.vllm.servers", "engine.vllm.host", "engine.vllm.port")
def test_servers_are_launched_on_their_addresses(settings, open_engine, monkeypatch):
    started: list[str] = []

    class Recorded(VllmProcess):
        """A launch that is written down instead of done."""

        def launch(self, arguments: Any) -> None:
            started.append(self.url)

        def wait_until_healthy(self) -> None:
            pass

    monkeypatch.setattr(vllm_server, "VllmProcess", Recorded)
    monkeypatch.setattr(vllm_server.vllm_compat, "check_vllm", lambda: "0.32.0")
    # Nothing is launched, and the port after a free one may be the end of some test's connection.
    monkeypatch.setattr(server_process, "refuse_taken_port", lambda *_: None)

    def launched(changes: dict[str, Any]) -> list[str]:
        started.clear()
        open_engine(changes)
        return list(started)

    (one,) = launched({})
    assert one.startswith("http://127.0.0.1:")
    assert len(set(launched({"engine.vllm.servers": 2}))) == 2
    assert launched({"engine.vllm.host": "127.0.0.2"})[0].startswith("http://127.0.0.2:")
    free = int(one.rpartition(":")[2])
    assert launched({"engine.vllm.servers": 2, "engine.vllm.port": free}) == [
        f"http://127.0.0.1:{free}",
        f"http://127.0.0.1:{free + 1}",
    ]


def one_request() -> list[Request]:
    return [Request("a", (1, 2), 0, SamplingParams(4))]


@effect("engine.vllm.endpoints")
def test_servers_that_someone_else_runs_are_asked(settings, open_engine, stub, monkeypatch):
    monkeypatch.setattr(vllm_server, "launch", lambda *_: [])
    assert open_engine({}).servers == []
    engine = open_engine({"engine.vllm.endpoints": [stub.url]})
    assert [output.token_ids for output in engine.generate(one_request())] == [[1]]
    assert [request["id"] for request in stub.asked] == ["a"]


@effect("engine.vllm.api_key")
def test_the_servers_key_is_shown(settings, open_engine, stub, monkeypatch):
    stub.key = "secret"
    with pytest.raises(EngineError, match=r"refuses the API key: set engine\.vllm\.api_key"):
        open_engine({"engine.vllm.endpoints": [stub.url]})
    engine = open_engine({"engine.vllm.endpoints": [stub.url], "engine.vllm.api_key": "secret"})
    assert engine.generate(one_request())[0].token_ids == [1]


@effect("engine.vllm.request_timeout")
def test_a_server_that_gives_nothing_is_given_up(settings, open_engine, stub):
    engine = open_engine({"engine.vllm.endpoints": [stub.url]})
    assert engine.timeout == 600
    stub.generate = "hang"
    engine = open_engine({"engine.vllm.endpoints": [stub.url], "engine.vllm.request_timeout": 1.0})
    with pytest.raises(EngineError, match="no completion within 1 s"):
        engine.generate(one_request())


def test_a_stream_that_breaks_after_its_last_result_costs_no_restart(open_engine, stub):
    stub.generate = "break"
    engine = open_engine({"engine.vllm.endpoints": [stub.url], "engine.vllm.restarts": 0})
    engine.submit(one_request())
    with engine.changed:
        assert engine.changed.wait_for(lambda: engine.broken, timeout=60)
    assert len(engine.poll(60.0)) == 1


def test_a_server_that_hangs_is_asked_again_like_one_that_died(open_engine, stub):
    keys = {"engine.vllm.endpoints": [stub.url], "engine.vllm.request_timeout": 1.0}
    engine = open_engine({**keys, "engine.vllm.restarts": 1})
    restored = []
    engine.restore = restored.append
    stub.hang()
    assert engine.generate(one_request())[0].token_ids == [1]
    assert restored == engine.servers and engine.restarts_left == 0
    engine = open_engine({**keys, "engine.vllm.restarts": 0})
    stub.hang()
    with pytest.raises(EngineError, match=r"hangs: nothing came for 1 s\), and engine\.vllm\.restarts are used up"):
        engine.generate(one_request())


def test_a_hanging_server_counts_as_dead_when_weights_are_published(open_engine, stub):
    keys = {"engine.vllm.endpoints": [stub.url], "engine.vllm.request_timeout": 1.0}
    engine = open_engine({**keys, "engine.vllm.restarts": 1})
    assert engine.revive() == 0
    stub.hang()
    assert engine.revive() == 1


def all_outputs(engine):
    found = []
    while engine.flights or engine.ready:
        found += engine.poll(60)
    return found


def test_requests_in_flight_are_asked_again_when_the_weight_sync_restarts_their_server(open_engine, stub):
    engine = open_engine({"engine.vllm.endpoints": [stub.url], "engine.vllm.restarts": 0})
    stub.generate = "break"
    engine.submit([Request(name, (1, 2), 0, SamplingParams(4)) for name in "abc"])
    with engine.changed:
        assert engine.changed.wait_for(lambda: engine.broken, timeout=60)
    [server] = engine.servers
    server.incarnation += 1  # the break was the end of the process that the weight sync has replaced
    stub.generate = "answer"
    assert sorted(output.request_id for output in all_outputs(engine)) == ["a", "b", "c"]


def test_nothing_is_asked_of_a_server_while_it_is_down(open_engine, stub):
    engine = open_engine({"engine.vllm.endpoints": [stub.url]})
    [server] = engine.servers
    engine.went_down(server)
    engine.submit(one_request())
    assert stub.asked == []
    engine.came_back(server)
    assert len(all_outputs(engine)) == 1


def test_an_answer_that_cannot_be_read_is_an_error_at_once(open_engine, stub):
    engine = open_engine({"engine.vllm.endpoints": [stub.url]})
    stub.answer = lambda request: {"id": request["id"], "tokens": None}
    with pytest.raises(EngineError, match="answers what cannot be read"):
        engine.generate(one_request())


def test_the_load_is_looked_at_by_one_loop_however_often_requests_come(open_engine, stub, monkeypatch):
    monkeypatch.setattr("shoal.engines.servers.engine.LOOK_SECONDS", 3600)
    engine = open_engine({"engine.vllm.endpoints": [stub.url]})
    for number in range(5):
        engine.generate([Request(str(number), (1, 2), 0, SamplingParams(4))])

    async def loops() -> int:
        return sum("_look_at_load" in str(task.get_coro()) for task in asyncio.all_tasks())

    assert engine.run(loops()) == 1


def test_servers_are_all_closed_where_one_cannot_be(open_engine, stub, monkeypatch):
    engine = open_engine({"engine.vllm.endpoints": [stub.url, stub.url]})
    closed = []

    def close() -> None:
        closed.append(1)
        raise OSError("no")

    with monkeypatch.context() as patched:
        for server in engine.servers:
            patched.setattr(server, "close", close)
        with pytest.raises(OSError, match="no"):
            engine.close()
    assert len(closed) == 2 and not engine.thread.is_alive()


@effect("engine.vllm.restarts")
def test_servers_are_given_up_when_the_restarts_are_used_up(settings, open_engine, stub):
    engine = open_engine({"engine.vllm.endpoints": [stub.url], "engine.vllm.restarts": 1})
    stub.generate = "break"
    requests = [Request(name, (1, 2), 0, SamplingParams(4)) for name in "abc"]
    with pytest.raises(EngineError, match=r"engine\.vllm\.restarts are used up"):
        engine.generate(requests)
    assert len(stub.asked) == 3 + 2  # one came out before the first break, one before the second
    engine = open_engine({"engine.vllm.endpoints": [stub.url], "engine.vllm.restarts": 2})
    assert len(engine.generate(requests)) == 3


@effect("engine.vllm.start_timeout")
@pytest.mark.vllm
def test_a_server_that_does_not_start_in_time_is_ended(settings, open_engine, monkeypatch):
    pytest.importorskip("vllm")
    with pytest.raises(EngineError, match=r"has not answered within 1 s; .*engine\.vllm\.start_timeout"):
        open_engine({"engine.vllm.start_timeout": 1.0})
    with pytest.raises(EngineError, match=r"has not answered within 2 s"):
        open_engine({"engine.vllm.start_timeout": 2.0})
