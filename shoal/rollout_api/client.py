"""The Atropos protocol from the client's side, for Shoal's own server and for the stock one.

Every call waits for a server that is not there, saying so, until its deadline. What a server refuses is an error.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from logging import getLogger
from typing import Any, TypeVar

import httpx

from shoal.errors import RolloutApiError
from shoal.http import GaveUp, NotYet, RetryPolicy

logger = getLogger(__name__)

READ_SECONDS = 120.0  # of one reply: a batch of long groups takes a stock server several seconds
COMPRESS_ABOVE = 1024

T = TypeVar("T")
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
        self.policy = RetryPolicy(seconds=timeout)
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

        def once() -> Any:
            try:
                reply = self.http.request(method, self.url + path, content=content, headers=headers)
            except httpx.TransportError as error:
                self.check()
                raise NotYet(f"does not answer ({type(error).__name__}: {error})") from error
            self.policy.refuse_busy(reply, f"is busy ({reply.status_code}: {reply.text[:200]})")
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

        return self.wait_for(once)

    def wait_for(self, once: Callable[[], T]) -> T:
        """What `once` gives, tried again for as long as it raises NotYet.

        Raises:
            RolloutApiError: it still did after `timeout` seconds.
        """
        try:
            return self.policy.call(once, self._say)
        except GaveUp as error:
            raise RolloutApiError(
                f"{self.url} {error.why}, for {error.seconds:.0f} s now: start it (shoal serve api, or run-api), or "
                "correct its URL"
            ) from error

    def _say(self, why: str, seconds: float) -> None:
        self.say(f"{self.url} {why}: waiting, {seconds:.0f} s so far of {self.timeout:.0f}")


class RefusedError(RolloutApiError):
    """The server answered with an error status."""

    def __init__(self, where: str, status: int, text: str) -> None:
        super().__init__(f"{where} answers {status}: {' '.join(text.split())[:400]}")
        self.status = status
