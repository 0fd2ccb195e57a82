"""Whatever an engine answers, whoever asked gets an outcome."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from shoal.engines.base import SamplingParams
from shoal.errors import EngineError, RolloutApiError
from shoal.rollout_api.client import ApiClient
from shoal.rollout_api.environment.engine_client import EngineClient

ANSWERS: dict[str, tuple[str, dict[str, Any]]] = {
    "a page": ("http://e", {"/health": "<html>", "/generate": "<html>"}),
    "a list": ("http://e", {"/health": {}, "/generate": []}),
    "log-probs that are none": (
        "http://e",
        {"/health": {}, "/generate": {"logprobs": [[[{"1": "x"}]]], "finish_reasons": ["stop"]}},
    ),
    "no models": ("http://e/v1", {"/v1/models": {"data": []}}),
    "models as a list": ("http://e/v1", {"/v1/models": []}),
    "models without a name": ("http://e/v1", {"/v1/models": {"data": [{}]}}),
    "no choices": ("http://e/v1", {"/v1/models": {"data": [{"id": "m"}]}, "/v1/completions": {}}),
    "too many completions": (
        "http://e",
        {"/health": {}, "/generate": {"logprobs": [[], []], "finish_reasons": ["stop", "stop"]}},
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_that_cannot_be_read_is_an_error_at_once(name: str):
    url, answers = ANSWERS[name]

    def answer(request: httpx.Request) -> httpx.Response:
        found = answers[request.url.path]
        return httpx.Response(200, text=found) if isinstance(found, str) else httpx.Response(200, json=found)

    async def run() -> None:
        client = EngineClient(url, timeout=3600)
        client.http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
        asked = [client.sample([1, 2], seed, SamplingParams(4)) for seed in (1, 2)]
        outcomes = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 60)
        assert [type(one) for one in outcomes] == [EngineError, EngineError]
        assert "http://e" in str(outcomes[0]) or "vLLM" in str(outcomes[0])
        await client.close()

    asyncio.run(run())


def test_a_server_of_scored_groups_that_answers_no_json_is_named():
    client = ApiClient("http://a")
    client.http = httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200, text="<html>")))
    with pytest.raises(RolloutApiError, match=r"http://a/info answers 200 without JSON \(<html>\)"):
        client.get("/info")
