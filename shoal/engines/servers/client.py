"""Asking one server for completions and log-probs, by Shoal's routes."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import cache
from typing import Any

import httpx
import msgspec

from shoal.errors import EngineError

# Status codes that asking again does not mend; 429 and 503 say that there is too much to do.
FINAL_STATUS = frozenset(range(400, 500)) - {408, 429}
# uvicorn closes a connection after 5 s without a request. A request that leaves at that moment would be taken for one
# to a dead server.
IDLE_SECONDS = 4.0
JSON = {"Content-Type": "application/json"}


@cache
def tls() -> ssl.SSLContext:
    """One for all requests: making it takes 36 ms, more than most requests do."""
    return ssl.create_default_context()


class ServerClient:
    """A server with Shoal's routes.

    Args:
        url: Scheme, host and port.
        api_key: The server's key, if it has one.
        timeout: Seconds without any result, or for one call, before the server is given up.
        key: Option that names the server's key, for error lines.
    """

    what = "server"  # in error lines
    remedies: Mapping[int, str] = {}  # by status of a refusal, with {key} for the option of the server's key

    def __init__(self, url: str, *, api_key: str | None, timeout: float, key: str) -> None:
        self.url = url.rstrip("/")
        self.name = f"{self.what} {self.url}"
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
        """Results in the form of requests.py, as they come.

        Raises:
            httpx.HTTPError: the server is not there, or went away before all results were.
            EngineError: it refuses to be asked.
        """
        missing = len(requests)
        body = msgspec.json.encode({"requests": requests})
        async with client.stream("POST", "/shoal/generate", content=body, headers=JSON) as response:
            if response.status_code != 200:
                await response.aread()
                self.refuse("POST /shoal/generate", response)
            rest = b""
            async for chunk in response.aiter_bytes():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield msgspec.json.decode(line)
                missing -= len(lines)
        if missing > 0:
            raise httpx.RemoteProtocolError(f"{missing} results are missing")

    async def metrics(self, client: httpx.AsyncClient) -> dict[str, float]:
        """What the server says of its load; nothing where it does not answer."""
        try:
            response = await client.get("/shoal/load", timeout=10.0)
        except httpx.HTTPError:
            return {}
        return dict(response.json()) if response.status_code == 200 else {}

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
        remedy = self.remedies.get(response.status_code, self.where_to_look()).format(key=self.key)
        raise EngineError(f"{self.name} refuses {what} (HTTP {response.status_code}: {said}); {remedy}")
