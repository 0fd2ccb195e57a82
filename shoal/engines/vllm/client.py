"""Asking one vLLM server for completions and log-probs, by Shoal's route or by vLLM's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx

from shoal.engines.servers.client import ServerClient
from shoal.engines.vllm.metrics import parse_metrics


class VllmClient(ServerClient):
    """A vLLM with Shoal's routes: launched by Shoal, or by `shoal serve vllm`."""

    what = "vLLM server"
    remedies = {  # noqa: RUF012 - never changed
        401: "set {key}, or SHOAL_VLLM_API_KEY in the environment, to the server's key",
        404: "it was not started by Shoal: start it with `shoal serve vllm`",
    }

    async def metrics(self, client: httpx.AsyncClient) -> dict[str, float]:
        """What vLLM says of its load; nothing where it does not answer."""
        try:
            response = await client.get("/metrics", timeout=10.0)
        except httpx.HTTPError:
            return {}
        return parse_metrics(response.text) if response.status_code == 200 else {}


class PlainVllmClient(VllmClient):
    """Any vLLM server, by the routes that every one has. It gives log-probs only: one HTTP request a completion.

    `model` is the name that is served.
    """

    def __init__(self, url: str, model: str, **options: Any) -> None:
        super().__init__(url, **options)
        self.model = model

    async def ask(self, client: httpx.AsyncClient, requests: Sequence[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
        tasks = [asyncio.create_task(self._score(client, request)) for request in requests]
        try:
            for done in asyncio.as_completed(tasks):
                yield await done
        finally:
            for task in tasks:
                task.cancel()

    async def _score(self, client: httpx.AsyncClient, request: dict[str, Any]) -> dict[str, Any]:
        body = {"model": self.model, "prompt": request["prompt"], "max_tokens": 1, "prompt_logprobs": 0}
        response = await client.post("/v1/completions", json=body)
        if response.status_code != 200:
            self.refuse("log-probs", response)
        rows = response.json()["choices"][0]["prompt_logprobs"]
        start = request["score_from"]
        found = [row[str(token)]["logprob"] for token, row in zip(request["prompt"][start:], rows[start:], strict=True)]
        return {"id": request["id"], "tokens": [], "logprobs": found, "reason": "stop"}
