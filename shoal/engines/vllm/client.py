"""Asking one vLLM server for completions and log-probs, by Shoal's route or by vLLM's own."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Sequence
from functools import cache
from typing import Any

import httpx

from shoal.engines.vllm.metrics import parse_metrics
from shoal.errors import EngineError

# Status codes that asking again does not mend; 429 and 503 say that there is too much to do.
FINAL_STATUS = frozenset(range(400, 500)) - {408, 429}
# vLLM closes a connection after 5 s without a request. One that leaves at that moment would be taken for a dead server.
IDLE_SECONDS = 4.0


@cache
def tls() -> ssl.SSLContext:
    """One for all requests: making it takes 36 ms, more than most requests do."""
    return ssl.create_default_context()


class VllmClient:
    """A server with Shoal's routes: launched by Shoal, or by `shoal serve vllm`.

    Args:
        url: Scheme, host and port.
        api_key: The server's key, if it has one.
        timeout: Seconds without any result, or for one call, before the server is given up.
        key: Option that names the server's key, for error lines.
    """

    def __init__(self, url: str, *, api_key: str | None, timeout: float, key: str) -> None:
        self.url = url.rstrip("/")
        self.name = f"vLLM server {self.url}"
        self.headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.timeout = timeout
        self.key = key

    def connection(self, most: int | None = None, *, patient: bool = False) -> httpx.AsyncClient:
        """A client for one event loop, with so many connections at most. A patient one has no deadline between two
        results; its user has."""
        timeout = httpx.Timeout(self.timeout, read=None if patient else self.timeout)
        limits = httpx.Limits(max_connections=most, max_keepalive_connections=most, keepalive_expiry=IDLE_SECONDS)
        return httpx.AsyncClient(
            base_url=self.url, headers=self.headers, timeout=timeout, limits=limits, trust_env=False, verify=tls()
        )

    async def ask(self, client: httpx.AsyncClient, requests: Sequence[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
        """Results in vllm_compat's form, each as soon as it is there.

        Raises:
            httpx.HTTPError: the server is not there, or went away before all results were.
            EngineError: it refuses to be asked.
        """
        missing = len(requests)
        async with client.stream("POST", "/shoal/generate", json={"requests": list(requests)}) as response:
            if response.status_code != 200:
                await response.aread()
                self.refuse("POST /shoal/generate", response)
            async for line in response.aiter_lines():
                yield json.loads(line)
                missing -= 1
        if missing > 0:
            raise httpx.RemoteProtocolError(f"{missing} results are missing")

    async def metrics(self, client: httpx.AsyncClient) -> dict[str, float]:
        """What the server says of its load; nothing where it does not answer."""
        try:
            response = await client.get("/metrics", timeout=10.0)
        except httpx.HTTPError:
            return {}
        return parse_metrics(response.text) if response.status_code == 200 else {}

    def alive(self) -> bool:
        """Whether the server answers and its engine lives."""
        try:
            return httpx.get(f"{self.url}/health", timeout=5.0, trust_env=False, verify=tls()).status_code == 200
        except httpx.HTTPError:
            return False

    def where_to_look(self) -> str:
        """Where the reason of a failure is written."""
        return "look into its log"

    def refuse(self, what: str, response: httpx.Response) -> None:
        """Raises for a status that is not 200.

        Raises:
            EngineError: asking again would not help; the line has the server's own words.
            httpx.HTTPStatusError: it might.
        """
        if response.status_code not in FINAL_STATUS:
            response.raise_for_status()
        said = " ".join(response.text.split())[:300]
        remedy = {
            401: f"set {self.key}, or SHOAL_VLLM_API_KEY in the environment, to the server's key",
            404: "it was not started by Shoal: start it with `shoal serve vllm`",
        }.get(response.status_code, self.where_to_look())
        raise EngineError(f"{self.name} refuses {what} (HTTP {response.status_code}: {said}); {remedy}")


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
