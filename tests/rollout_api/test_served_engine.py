"""The built-in engine behind HTTP, and environments that are tried out on it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import Qwen3ForCausalLM

from shoal import load_config
from shoal.config import ShoalConfig
from shoal.engines.base import Request, SamplingParams
from shoal.engines.builtin.engine import TorchEngine
from shoal.engines.served.engine import ServedEngine
from shoal.engines.served.server import GenerateServer
from shoal.errors import EngineError
from shoal.rollout_api.environment.engine_client import EngineClient, read_completions, read_generated
from shoal.rollout_api.environment.modes import evaluate, process
from shoal.tasks.story import story_tokenizer
from shoal.tasks.warm_start import Recipe, architecture
from shoal.types import Segment, StopReason

SAMPLING = SamplingParams(max_new_tokens=6)


@pytest.fixture(scope="module")
def model() -> Any:
    recipe = Recipe(layers=2, hidden=16, heads=2, kv_heads=1, head_dim=8, ffn=32, init_std=0.3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = Qwen3ForCausalLM(architecture(recipe, story_tokenizer())).eval()
    made.generation_config.eos_token_id = story_tokenizer().eos_token_id
    return made


@pytest.fixture(scope="module")
def engine(model: Any) -> Iterator[ServedEngine]:
    made = ServedEngine(model, story_tokenizer(), max_batch=16)
    made.refresh(3)
    yield made
    made.close()


@pytest.fixture(scope="module")
def url(engine: ServedEngine) -> Iterator[str]:
    server = GenerateServer(engine, story_tokenizer(), "127.0.0.1", 0)
    yield server.url
    server.close()


def ask(url: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{url}/generate", json=body, timeout=60, trust_env=False)


def test_a_reply_has_what_a_vllm_server_gives_and_the_versions(engine: ServedEngine, url: str):
    prompt = {"prompt_token_ids": [7, 8, 9]}
    with engine.serving():
        reply = ask(url, prompt=prompt, max_tokens=5, n=2, seed=11, logprobs=0).json()
    assert len(reply["text"]) == len(reply["finish_reasons"]) == len(reply["logprobs"]) == 2
    assert reply["prompt_token_ids"] == [7, 8, 9]
    segments = [Segment([7, 8, 9], ids, [], [True] * len(ids)) for ids in reply["token_ids"]]
    for row, scored, ids in zip(reply["logprobs"], engine.logprobs(segments), reply["token_ids"], strict=True):
        assert [list(map(int, one[0])) for one in row] == [[id_] for id_ in ids]
        assert [next(iter(one[0].values())) for one in row] == pytest.approx(scored, abs=1e-5)
    assert reply["versions"] == [[[0, 3]], [[0, 3]]]


def test_n_completions_have_the_seeds_that_follow_and_seeds_may_be_given_one_by_one(engine: ServedEngine, url: str):
    prompt = {"prompt_token_ids": [7, 8, 9]}
    with engine.serving():
        together = ask(url, prompt=prompt, max_tokens=6, n=3, seed=5).json()["token_ids"]
        each = [ask(url, prompt=prompt, max_tokens=6, seed=seed).json()["token_ids"][0] for seed in (5, 6, 7)]
        given = ask(url, prompt=prompt, max_tokens=6, seeds=[7, 5, 6]).json()["token_ids"]
    assert together == each == [given[1], given[2], given[0]]


def test_samples_are_those_of_the_same_engine_in_this_process(model: Any, engine: ServedEngine, url: str):
    alone = TorchEngine(model, story_tokenizer(), max_batch=16)
    alone.refresh(3)
    [wanted] = alone.generate([Request("r", (7, 8, 9), 99, SAMPLING)])

    async def sample() -> Any:
        client = EngineClient(url, timeout=60)
        try:
            return await asyncio.gather(*(client.sample([7, 8, 9], seed, SAMPLING) for seed in (99, 100)))
        finally:
            await client.close()

    with engine.serving():
        got, other = asyncio.run(sample())
    assert (got.token_ids, got.stop_reason) == (wanted.token_ids, wanted.stop_reason)
    assert got.logprobs == pytest.approx(wanted.logprobs) and other.token_ids != got.token_ids


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"prompt": {"prompt_token_ids": []}}, "prompt"),
        ({"prompt": ""}, "it has no token"),
        ({"prompt": {"prompt_token_ids": [10**6]}}, "no id of a vocabulary"),
        ({"prompt": {"prompt_token_ids": [1] * 600}}, "positions"),
        ({"prompt": {"prompt_token_ids": [1]}, "max_tokens": 0}, "max_tokens"),
        ({"prompt": {"prompt_token_ids": [1]}, "top_p": 0}, "top_p"),
        ({"prompt": {"prompt_token_ids": [1]}, "best_of": 2}, "best_of"),
        ({"prompt": {"prompt_token_ids": [1]}, "stream": True}, "stream"),
    ],
)
def test_what_cannot_be_sampled_is_refused_with_the_reason(url: str, body: dict[str, Any], says: str):
    reply = ask(url, **body)
    assert reply.status_code == 422 and says in reply.text


def test_nothing_is_sampled_while_the_trainer_has_the_module_and_versions_tell_of_a_change(
    engine: ServedEngine, url: str
):
    with httpx.Client(trust_env=False) as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post(f"{url}/generate", json={"prompt": {"prompt_token_ids": [7]}}, timeout=0.5)
        served = engine.served
        time.sleep(0.3)
        assert engine.served == served
    [own] = engine.generate([Request("own", (7, 8), 1, SAMPLING)])
    assert own.request_id == "own" and own.token_ids
    engine.refresh(4)
    with engine.serving():
        assert ask(url, prompt={"prompt_token_ids": [7]}, max_tokens=3).json()["versions"] == [[[0, 4]]]
    engine.refresh(3)


def test_replies_of_other_servers_are_read_too():
    dialect = {"logprobs": [[{"5": -0.5, "6": -0.1}, [{"7": -0.25}]]], "finish_reasons": ["length"]}
    [output] = read_generated(dialect)
    assert (output.token_ids, output.logprobs, output.stop_reason) == ([5, 7], [-0.5, -0.25], StopReason.LENGTH)
    choice = {"token_ids": [5], "logprobs": {"token_logprobs": [-0.5]}, "finish_reason": "stop"}
    [output] = read_completions({"choices": [choice]})
    assert (output.token_ids, output.logprobs, output.stop_reason) == ([5], [-0.5], StopReason.STOP)
    with pytest.raises(EngineError, match="no token ids"):
        read_completions({"choices": [{**choice, "token_ids": None}]})
    with pytest.raises(EngineError, match="no log-probs"):
        read_generated({"text": ["a"]})


@pytest.fixture
def cfg(tmp_path: Path) -> ShoalConfig:
    # The tokenizer is all that an environment needs of the model.
    overrides = ["sampling.max_new_tokens=6", "run.group_size=2", "evaluation.prompts=3", "runtime.target=cpu"]
    return load_config("story", overrides)


def test_process_writes_groups_and_samples_with_their_tokens_for_the_view(
    engine: ServedEngine, url: str, cfg: ShoalConfig, tmp_path: Path
):
    with engine.serving():
        folder = process("story", cfg, url, 3, tmp_path / "out")
    groups = [json.loads(line) for line in (tmp_path / "out" / "groups.jsonl").read_text().splitlines()]
    assert len(groups) == 3 and all(len(group["tokens"]) == 2 for group in groups)
    rows = [json.loads(line) for line in (folder / "samples" / "step_0.jsonl").read_text().splitlines()]
    assert len(rows) == 6 and all("How many?" in row["prompt"] for row in rows)
    assert all(len(row["tokens"][name]) == row["length"] for row in rows for name in ("text", "sampler", "mask"))
    tags = groups[0]["generation_params"]["shoal"]
    assert tags["versions"] == [[[0, 3]], [[0, 3]]] and groups[0]["generation_params"]["weights_version"] == 3


def test_evaluate_gives_the_accuracy_of_what_the_engine_holds(engine: ServedEngine, url: str, cfg: ShoalConfig):
    with engine.serving():
        found = evaluate("story", cfg, url)
    assert found["accuracy"] == 0 and found["missing"] == 0 and 0 < found["length"] <= 6


def test_a_request_that_waits_when_the_server_ends_is_answered_and_is_no_traceback(
    model: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
):
    engine = ServedEngine(model, story_tokenizer(), max_batch=4)
    engine.refresh(0)
    server = GenerateServer(engine, story_tokenizer(), "127.0.0.1", 0)
    body = {"prompt": {"prompt_token_ids": [5, 6]}, "max_tokens": 4}
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, server.url, **body)
        while not engine.inbox:  # it waits: the engine does not serve
            assert not asked.done()
        server.close()
        engine.close()
        reply = asked.result(timeout=60)
    assert reply.status_code == 200 and "abort" in reply.text
    assert "Traceback" not in caplog.text + capfd.readouterr().err
