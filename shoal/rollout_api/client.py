"""The Atropos protocol from the client's side, for Shoal's own server and for the stock one.

Every call waits for a server that is not there, saying so, until its deadline. What a server refuses is an error.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from logging import getLogger
from time import monotonic, sleep
from typing import Any

import httpx

from shoal.errors import RolloutApiError

logger = getLogger(__name__)

LONGEST_PAUSE = 2.0
SAY_EVERY = 10.0
READ_SECONDS = 120.0  # of one reply: a batch of long groups takes a stock server several seconds
COMPRESS_ABOVE = 1024
BUSY = (408, 429, 502, 503, 504)

Say = Callable[[str], None]


class ApiClient:
    """One connection to a server of scored groups; may be used from several threads.

    Args:
        url: Address of the server, such as http://127.0.0.1:8000.
        token: Sent as a bearer token where there is one.
        timeout: Seconds that a call waits for a server that does not answer.
        say: Takes a line for people while it waits.
        check: Called while it waits; raises where waiting is in vain.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout: float = 600.0,
        say: Say = logger.info,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.url = url.rstrip("/")
        self.timeout = timeout
        self.say = say
        self.check = check
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.http = httpx.Client(headers=headers, timeout=httpx.Timeout(READ_SECONDS, connect=5.0), trust_env=False)

    def get(self, path: str, body: Any = None) -> Any:
        """The JSON that a GET answers; `body` goes with it as JSON, which the protocol asks of /status-env."""
        return self._call("GET", path, body)

    def post(self, path: str, body: Any) -> Any:
        """The JSON that a POST answers. It may arrive twice where a reply is lost: give it a key where that matters."""
        return self._call("POST", path, body)

    def close(self) -> None:
        """Ends the connection."""
        self.http.close()

    def _call(self, method: str, path: str, body: Any) -> Any:
        content = None if body is None else json.dumps(body, allow_nan=False).encode()
        headers = {"Content-Type": "application/json"} if content is not None else {}
        if content is not None and method == "POST" and len(content) > COMPRESS_ABOVE:
            content = gzip.compress(content, compresslevel=1)
            headers["Content-Encoding"] = "gzip"
        waiting = Waiting(self.url, self.timeout, self.say)
        while True:
            try:
                reply = self.http.request(method, self.url + path, content=content, headers=headers)
            except httpx.TransportError as error:
                self.check()
                waiting.pause(f"does not answer ({type(error).__name__}: {error})")
                continue
            if reply.status_code in BUSY:
                waiting.pause(f"is busy ({reply.status_code}: {reply.text[:200]})", reply.headers.get("Retry-After"))
                continue
            if reply.is_error:
                raise RefusedError(f"{self.url}{path.partition('?')[0]}", reply.status_code, reply.text)
            try:
                return reply.json()
            except (ValueError, RecursionError) as error:
                said = " ".join(reply.text[:200].split())
                raise RolloutApiError(
                    f"{self.url}{path.partition('?')[0]} answers {reply.status_code} without JSON ({said}): is it a "
                    "server of scored groups?"
                ) from error


class RefusedError(RolloutApiError):
    """The server answered with an error status."""

    def __init__(self, where: str, status: int, text: str) -> None:
        super().__init__(f"{where} answers {status}: {' '.join(text.split())[:400]}")
        self.status = status


class Waiting:
    """Pauses that grow, a word now and then, and an end.

    Raises:
        RolloutApiError: from `pause`, when `timeout` seconds have gone by since the first.
    """

    def __init__(self, url: str, timeout: float, say: Say) -> None:
        self.url, self.timeout, self.say = url, timeout, say
        self.started = self.said = monotonic()
        self.length = 0.05

    def pause(self, why: str, asked: str | None = None) -> None:
        """Sleeps for a while, longer each time; `asked` is what the server asked for, in seconds."""
        now = monotonic()
        waited = now - self.started
        if waited > self.timeout:
            raise RolloutApiError(
                f"{self.url} {why}, for {waited:.0f} s now: start it (shoal serve api, or run-api), or correct its URL"
            )
        if now - self.said > SAY_EVERY:
            self.said = now
            self.say(f"{self.url} {why}: waiting, {waited:.0f} s so far of {self.timeout:.0f}")
        asked_seconds = float(asked) if asked and asked.replace(".", "", 1).isdigit() else 0.0
        sleep(min(max(self.length, min(asked_seconds, 30.0)), max(self.timeout - waited, 0.01)))
        self.length = min(self.length * 1.5, LONGEST_PAUSE)
