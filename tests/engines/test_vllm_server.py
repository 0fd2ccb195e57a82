"""What only servers have: deaths, keys, several of them, and being given by someone else."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Timer
from typing import Any

import psutil
import pytest
from engine_models import completed, plain_logprobs
from test_vllm_engines import TOLERANCE, largest
from vllm_tiny import API_KEY, POSITIONS, save_vllm_model, server_engine

from shoal.engines.base import EngineOutput, Request, SamplingParams
from shoal.engines.servers.control import Control
from shoal.engines.vllm.client import PlainVllmClient, VllmClient
from shoal.engines.vllm.endpoint import check_endpoint, has_shoal_routes
from shoal.errors import EngineError, ServerDied
from shoal.network import free_port
from shoal.references.vllm import VllmReference
from shoal.types import Completion, Group, Segment, StopReason

pytest.importorskip("vllm", reason="needs vLLM")
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]


def long_running(count: int, name: str = "") -> list[Request]:
    """Groups of four that take a second or two together."""
    sampling = SamplingParams(300, temperature=0.5)
    return [
        Request(f"{name}{n}/{index}", (3, n, n + 1), 100 * n + index, sampling, f"{name}{n}")
        for n in range(count // 4)
        for index in range(4)
    ]


def members(group: int) -> list[psutil.Process]:
    """Living processes of a process group."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def group_of(engine: Any, number: int = 0) -> int:
    return int(engine.servers[number].process.process.pid)


def assert_right(outputs: list[EngineOutput], requests: list[Request], model: Any) -> None:
    """Every request came out once, complete, with the model's log-probs."""
    assert sorted(output.request_id for output in outputs) == sorted(request.id for request in requests)
    prompts = {request.id: request.prompt_ids for request in requests}
    for output in outputs[::5]:
        assert output.stop_reason in (StopReason.STOP, StopReason.LENGTH)
        plain = plain_logprobs(model, prompts[output.request_id], output.token_ids, 0.5)
        assert largest([output.logprobs], [plain]) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(10))
def test_a_server_that_is_killed_in_a_rollout_owes_nothing(server: Any, vllm_model: Any, moment: int) -> None:
    dice = random.Random(moment)
    restored: list[Control] = []
    server.restore = restored.append
    requests = long_running(64, f"kill {moment} ")
    group = group_of(server)
    # The API server, or one of the processes behind it.
    victim = dice.choice(members(group)).pid if moment % 2 else group
    timer = Timer(dice.uniform(0.0, 1.0), os.kill, (victim, signal.SIGKILL))
    timer.start()
    outputs = server.generate(requests)
    timer.join()
    assert_right(outputs, requests, vllm_model)
    if not restored:  # all was done before the kill came
        server.revive()
    assert restored == [server.servers[0]]
    assert members(group) == []
    server.restore = None


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["the API server", "a process behind it"])
def test_a_server_that_hangs_is_started_again_and_owes_nothing(
    server: Any, vllm_model: Any, victim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    restored: list[Control] = []
    patience = {one: one.timeout for one in (server, server.servers[0])}
    for one in patience:
        monkeypatch.setattr(one, "timeout", 5.0)

    def restore(control: Control) -> None:
        restored.append(control)
        for one, seconds in patience.items():
            one.timeout = seconds  # the new one may take its time

    monkeypatch.setattr(server, "restore", restore)
    requests = long_running(16, f"hang {victim} ")
    group = group_of(server)
    behind = [process.pid for process in members(group) if process.pid != group]
    for pid in [group] if "API" in victim else behind:
        os.kill(pid, signal.SIGSTOP)
    outputs = server.generate(requests)
    assert_right(outputs, requests, vllm_model)
    assert restored == [server.servers[0]]
    assert members(group) == []


def test_a_call_to_a_dead_server_says_so_and_revive_starts_it_again(server: Any) -> None:
    server.revive()  # counts what other tests had started again
    os.kill(group_of(server), signal.SIGKILL)
    with pytest.raises(ServerDied, match="does not answer"):
        for _ in range(100):  # until the kill has come through
            server.replicas[0].reset_prefix_cache()
    assert server.revive() == 1
    assert server.revive() == 0
    server.replicas[0].reset_prefix_cache()


def test_a_server_restarts_on_other_weights_and_the_same_port(
    server: Any, vllm_folder: Path, vllm_model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    other = save_vllm_model(tmp_path / "other", tokenizer, seed=8)
    control, url = server.replicas[0], server.servers[0].url
    segment = Segment([1, 2, 3], [4, 5], [], [])
    try:
        control.restart(tmp_path / "other")
        assert (server.servers[0].url, control.model) == (url, str(tmp_path / "other"))
        assert largest(server.logprobs([segment]), [plain_logprobs(other, (1, 2, 3), [4, 5])]) < TOLERANCE
    finally:
        control.restart(vllm_folder / "model")
    assert largest(server.logprobs([segment]), [plain_logprobs(vllm_model, (1, 2, 3), [4, 5])]) < TOLERANCE


def test_an_endpoint_is_asked_with_its_key(server: Any, vllm_folder: Path, vllm_model: Any, tokenizer: Any) -> None:
    there = {"endpoints": [server.servers[0].url]}
    with pytest.raises(EngineError, match=r"set engine\.vllm\.api_key"):
        server_engine(vllm_folder / "model", vllm_model, tokenizer, vllm_folder, **there)
    engine = server_engine(vllm_folder / "model", vllm_model, tokenizer, vllm_folder, **there, api_key=API_KEY)
    requests = long_running(8, "endpoint ")
    assert_right(engine.generate(requests), requests, vllm_model)
    with pytest.raises(EngineError, match="run by someone else"):
        engine.replicas[0].restart(vllm_folder / "model")
    engine.close()
    assert server.servers[0].alive()


@pytest.mark.parametrize("path", ["/shoal/counts", "/collective_rpc", "/pause", "/v1/completions"])
def test_every_route_that_does_anything_asks_for_the_key(server: Any, path: str) -> None:
    import httpx  # noqa: PLC0415 - for this test

    url = server.servers[0].url
    assert httpx.post(url + path, json={}).status_code == 401
    assert httpx.get(f"{url}/health").status_code == 200


def test_a_server_of_another_model_is_refused(server: Any, tokenizer: Any) -> None:
    url, headers = server.servers[0].url, server.servers[0].headers

    def check(**changes: Any) -> None:
        plain: dict[str, Any] = {"tokenizer": tokenizer, "needed": 100, "where": "here", "key": "k"}
        check_endpoint(url, headers, **{**plain, **changes})

    check()
    with pytest.raises(
        EngineError, match=rf"its max_model_len is {POSITIONS}, but .* may have 600 tokens; start it with"
    ):
        check(needed=600)
    with pytest.raises(EngineError, match="serves no model 'other', but policy"):
        check(name="other")

    class Shifted:
        """A tokenizer of other ids."""

        name_or_path = "another"

        def encode(self, text: str, **options: Any) -> list[int]:
            return [id_ + 1 for id_ in tokenizer.encode(text, **options)]

    with pytest.raises(EngineError, match="has another tokenizer"):
        check(tokenizer=Shifted())
    with pytest.raises(EngineError, match="nothing answers there"):
        check_endpoint(f"http://127.0.0.1:{free_port('127.0.0.1')}", {}, where="w", key="k", tokenizer=None, needed=1)


def test_a_reference_scores_what_was_sampled_as_the_local_model_does(server: Any, vllm_model: Any) -> None:
    outputs = server.generate(requests := long_running(16, "reference "))
    url, headers = server.servers[0].url, server.servers[0].headers
    assert has_shoal_routes(url, headers)
    for client in (
        VllmClient(url, api_key=API_KEY, timeout=120.0, key="k"),
        PlainVllmClient(url, "policy", api_key=API_KEY, timeout=120.0, key="k"),
    ):
        completions = [
            Completion([Segment(list(r.prompt_ids), o.token_ids, o.logprobs, [True] * len(o.token_ids))], o.stop_reason)
            for r, o in zip(requests, outputs, strict=True)
        ]
        completions[0].segments.append(Segment([1, 2], [], [], []))
        VllmReference(client, concurrency=5, retries=0).score([Group("g", completions)])
        for request, completion in zip(requests, completions, strict=True):
            # The completions were sampled at another temperature: the reference is at 1.
            plain = plain_logprobs(vllm_model, request.prompt_ids, completion.segments[0].sampled_ids)
            assert largest([completion.segments[0].ref_logprobs or []], [plain]) < 1e-4
        assert completions[0].segments[1].ref_logprobs == []


def test_two_servers_share_the_load_and_a_group_stays_on_one(
    server: Any, vllm_folder: Path, vllm_model: Any, tokenizer: Any
) -> None:
    # The session's server is the second one, so that only one more has to start.
    alone = server_engine(vllm_folder / "model", vllm_model, tokenizer, vllm_folder / "two", api_key=API_KEY)
    both = server_engine(
        vllm_folder / "model",
        vllm_model,
        tokenizer,
        vllm_folder,
        api_key=API_KEY,
        endpoints=[server.servers[0].url, alone.servers[0].url],
    )
    try:
        requests = long_running(64, "two ")
        both.submit(requests)
        homes = {request.id: both.flights[request.id].server.url for request in requests}
        assert_right(list(completed(both)), requests, vllm_model)
        groups = {request.group: {homes[r.id] for r in requests if r.group == request.group} for request in requests}
        assert {len(urls) for urls in groups.values()} == {1}
        shares = [list(homes.values()).count(one.url) for one in both.servers]
        assert shares == [32, 32]
        segments = [Segment([1, 2, n], [3, 4], [], []) for n in range(5)]
        plain = [plain_logprobs(vllm_model, (1, 2, n), [3, 4]) for n in range(5)]
        assert largest(both.logprobs(segments), plain) < TOLERANCE
    finally:
        both.close()
        group = group_of(alone)
        alone.close()
    assert members(group) == []


OWNER = """
import sys, time
from shoal.engines.vllm.process import VllmProcess
from pathlib import Path
from vllm_tiny import tiny_arguments
line = tiny_arguments(Path(sys.argv[1]))
server = VllmProcess(line.line(), line.environment(), host="127.0.0.1", port=0, log=Path(sys.argv[2]),
                       start_timeout=600.0, key="engine.vllm")
print(server.process.pid, flush=True)
server.wait_until_healthy()
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_no_process_of_a_server_outlives_a_killed_trainer(vllm_folder: Path, vllm_model: Any, tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(vllm_folder / "model"), str(tmp_path / "log")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert owner.stdout is not None
    group = int(owner.stdout.readline())
    assert owner.stdout.readline() == "ready\n"
    assert len(members(group)) >= 2
    owner.kill()
    owner.wait(10)
    deadline = time.monotonic() + 30
    while members(group) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert members(group) == []


@pytest.mark.slow
def test_a_server_that_ends_while_starting_says_why(
    vllm_folder: Path, vllm_model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(EngineError, match=r"ended while starting: .*log"):
        server_engine(tmp_path / "nothing", vllm_model, tokenizer, tmp_path)


def test_a_port_that_is_taken_is_refused_at_once(
    server: Any, vllm_folder: Path, vllm_model: Any, tokenizer: Any
) -> None:
    taken = server.servers[0].process.port
    with pytest.raises(EngineError, match=rf"engine\.vllm\.port={taken}: .* is taken .* set engine\.vllm\.port=0"):
        server_engine(vllm_folder / "model", vllm_model, tokenizer, vllm_folder, port=taken)
