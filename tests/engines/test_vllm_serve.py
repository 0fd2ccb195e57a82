"""`shoal serve vllm`: what others get from it. One server with room for adapters, one with a bridge."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

import httpx
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from shoal.cli.command import main
from shoal.network import free_port
from shoal.tasks.warm_start import warm_started_model

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
pytest.importorskip("vllm", reason="vLLM is not installed")

KEY = "a secret"
HEADERS = {"Authorization": f"Bearer {KEY}"}
START_SECONDS = 400
PROMPT = [5, 6, 7, 8, 9]


@contextmanager
def served(log: Path, *flags: str, key: str | None = None) -> Iterator[str]:
    """The address of a server on the built-in model."""
    port = free_port("127.0.0.1")
    command = [
        sys.executable,
        "-m",
        "shoal.cli",
        "serve",
        "vllm",
        f"--model={warm_started_model()}",
        f"--port={port}",
    ]
    environment = {**os.environ, "TORCHDYNAMO_DISABLE": "1", **({"SHOAL_VLLM_API_KEY": key} if key else {})}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--max-model-len=512", "--dtype=float32", *flags],
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = monotonic() + START_SECONDS
        while not answers(url):
            assert process.poll() is None and monotonic() < deadline, log.read_text()[-3000:]
            sleep(0.5)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    log = tmp_path_factory.mktemp("server") / "server.log"
    with (
        served(log, "--lora-rank=8", key=KEY) as url,
        httpx.Client(base_url=url, headers=HEADERS, timeout=120) as client,
    ):
        yield client


def generated(server: httpx.Client, **fields: object) -> dict:
    reply = server.post("/generate", json={"prompt": {"prompt_token_ids": PROMPT}, "logprobs": 0, **fields})
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_generate_answers_in_the_dialect_of_vllms_small_server(server: httpx.Client):
    found = generated(server, n=3, seed=7, max_tokens=6)
    assert found["prompt_token_ids"] == PROMPT
    assert len(found["text"]) == len(found["finish_reasons"]) == len(found["token_ids"]) == 3
    assert set(found["finish_reasons"]) <= {"stop", "length"}
    for ids, positions in zip(found["token_ids"], found["logprobs"], strict=True):
        assert [int(next(iter(position[0]))) for position in positions] == ids
    # The seeds of n completions are the given one and those that follow it.
    assert found["token_ids"] == generated(server, seeds=[7, 8, 9], max_tokens=6)["token_ids"]


def test_log_probs_are_those_of_the_distribution_that_was_sampled(server: httpx.Client):
    found = generated(server, seed=1, max_tokens=4, temperature=0.5)
    model = AutoModelForCausalLM.from_pretrained(warm_started_model(), dtype=torch.float32)
    [ids], [positions] = found["token_ids"], found["logprobs"]
    with torch.no_grad():
        logits = model(torch.tensor([PROMPT + ids])).logits[0, len(PROMPT) - 1 : -1] / 0.5
    expected = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0].tolist()
    assert [next(iter(position[0].values())) for position in positions] == pytest.approx(expected, abs=2e-5)


def test_without_the_key_only_health_answers(server: httpx.Client):
    base = str(server.base_url)
    assert httpx.get(f"{base}/health").json() == {"status": "ok", "accepts": ["seeds"]}
    for path in ("/generate", "/bridge/pause", "/lora/load", "/v1/completions", "/shoal/call"):
        assert httpx.post(f"{base}{path}", json={}).status_code == 401


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"prompt": {"prompt_token_ids": []}}, "prompt_token_ids"),
        ({"prompt": {"prompt_token_ids": [1]}, "frobnicate": 1}, "frobnicate"),
        ({"prompt": {"prompt_token_ids": [1]}, "stream": True}, "stream"),
        ({"prompt": {"prompt_token_ids": [10**6]}}, "vocab"),
        ({"prompt": {"prompt_token_ids": [1] * 600}}, "max"),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused_with_the_reason(server: httpx.Client, body: dict, reason: str):
    reply = server.post("/generate", json=body)
    assert reply.status_code == 422
    assert reason in reply.json()["error"]


def test_a_pause_holds_completions_and_a_resume_lets_them_go_on(server: httpx.Client):
    assert server.post("/bridge/pause").json() == {"status": "paused"}
    assert server.get("/bridge/is_paused").json() == {"paused": True}
    with pytest.raises(httpx.ReadTimeout):
        server.post("/generate", json={"prompt": {"prompt_token_ids": PROMPT}, "max_tokens": 2}, timeout=2)
    assert server.post("/bridge/resume").json() == {"status": "resumed"}
    assert len(generated(server, max_tokens=2)["token_ids"]) == 1
    assert server.get("/health_generate").status_code == 200


def test_an_adapter_is_swapped_in_and_out_and_a_bad_one_is_refused(server: httpx.Client, tmp_path: Path):
    base = generated(server, seed=0, max_tokens=8, temperature=0)
    model = AutoModelForCausalLM.from_pretrained(warm_started_model())
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(0))
    adapted.save_pretrained(tmp_path / "adapter")
    assert server.get("/lora/status").json() == {"loaded": None}
    loaded = server.post("/lora/load", json={"adapter_path": str(tmp_path / "adapter")})
    assert loaded.status_code == 200, loaded.text
    assert server.get("/lora/status").json()["loaded"]["adapter_path"] == str(tmp_path / "adapter")
    assert generated(server, seed=0, max_tokens=8, temperature=0)["logprobs"] != base["logprobs"]
    assert server.post("/lora/load", json={"adapter_path": str(tmp_path / "nowhere")}).status_code == 400
    assert server.post("/lora/unload").status_code == 200
    assert generated(server, seed=0, max_tokens=8, temperature=0)["token_ids"] == base["token_ids"]
    assert server.post("/lora/unload").status_code == 409


def test_a_trainer_finds_the_bridge_of_a_server_started_by_hand(tmp_path: Path):
    bridge = tmp_path / "bridge"
    with served(tmp_path / "server.log", f"--bridge={bridge}") as url:
        info = httpx.get(f"{url}/bridge/info").json()
        assert (info["enabled"], info["folder"]) == (True, str(bridge))
        words = ["engine=vllm_server", f"engine.vllm.endpoints=[{url}]", "weight_sync=shared"]
        more = [f"weight_sync.bridge={bridge}", "runtime.target=cpu", "runtime.mixed_precision=none"]
        command = ["train", "--smoke-test", f"run.root={tmp_path}", "run.name=run", *words, *more]
        assert main(command) == 0
        rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        assert max(row["step"] for row in rows) == 2
        # The trainer has gone; the server has its last weights.
        assert httpx.get(f"{url}/bridge/info").json()["version"] == 2


def test_a_trainer_gives_adapters_to_a_server_started_by_hand(tmp_path: Path):
    with served(tmp_path / "server.log", "--lora-rank=16") as url:
        words = ["engine=vllm_server", f"engine.vllm.endpoints=[{url}]", "weight_sync=lora", "model.train=lora"]
        more = ["runtime.target=cpu", "runtime.mixed_precision=none", "model.lora.r=16"]
        command = ["train", "--smoke-test", f"run.root={tmp_path}", "run.name=run", *words, *more]
        assert main(command) == 0
        rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        assert max(row["step"] for row in rows) == 2


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--host", "0.0.0.0"], "set SHOAL_VLLM_API_KEY"),
        (["--bridge", "b", "--tensor-parallel", "2"], "--bridge shares the memory of one worker"),
        (["--bridge", "b", "--lora-rank", "8"], "choose one"),
    ],
)
def test_flags_that_cannot_be_served_are_refused_in_one_line(
    flags: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SHOAL_VLLM_API_KEY", raising=False)
    assert main(["serve", "vllm", f"--model={warm_started_model()}", *flags]) == 2
    assert line in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
