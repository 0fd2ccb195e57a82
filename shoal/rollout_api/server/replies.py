"""Answers: JSON, errors with their reason, and batches joined from stored segments."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import json as msgjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from shoal.network import is_loopback
from shoal.rollout_api.server.compression import DeflatedSegment, gzip_of
from shoal.rollout_api.server.records import Delivery

GZIP_FROM = 1000
RETRY_SECONDS = 5
JSON = {"content-type": "application/json"}


def reply(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Anything that msgspec can encode."""
    return Response(msgjson.encode(content), status, {**JSON, **(headers or {})})


def refusal(status: int, reason: str, more: dict[str, Any] | None = None) -> Response:
    """An error in words, under `detail`."""
    headers = {"retry-after": str(RETRY_SECONDS)} if status == 503 else {}
    if status == 401:
        headers["www-authenticate"] = 'Basic realm="shoal", Bearer'
    return reply({"detail": reason, **(more or {})}, status, headers)


def wrong_body(message: str, where: Sequence[str | int]) -> Response:
    """422 as FastAPI writes it."""
    return reply({"detail": [{"loc": ["body", *where], "msg": message, "type": "value_error"}]}, 422)


def takes_gzip(request: Request) -> bool:
    """Whether the client said so."""
    for choice in request.headers.get("accept-encoding", "").lower().split(","):
        name, _, quality = choice.partition(";")
        if name.strip() in ("gzip", "*"):
            return quality.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def is_far(request: Request) -> bool:
    """Whether the client takes gzip over a network, which is slower than deflating is."""
    return takes_gzip(request) and not (request.client and is_loopback(request.client.host))


async def stored_reply(request: Request, segments: list[DeflatedSegment]) -> PartsResponse:
    """Stored segments as they are, or inflated for a client that takes no gzip."""
    if takes_gzip(request) and sum(segment.length for segment in segments) >= GZIP_FROM:
        return PartsResponse(gzip_of(segments), {"content-encoding": "gzip", "vary": "Accept-Encoding"})
    return PartsResponse(await asyncio.to_thread(_plain, segments), {"vary": "Accept-Encoding"})


async def batch_reply(request: Request, delivery: Delivery, done: Callable[[bool], None]) -> PartsResponse:
    """A batch. `done` is told whether the answer was sent whole."""
    segments = [DeflatedSegment.of(b'{"batch":[')]
    comma = DeflatedSegment.of(b",")
    for index, content in enumerate(delivery.contents):
        segments += [comma, content] if index else [content]
    about = {"lease": delivery.lease.id, "step": delivery.step, "groups": delivery.infos}
    segments.append(DeflatedSegment.of(b"]," + msgjson.encode(about)[1:]))
    response = await stored_reply(request, segments)
    response.done = done
    return response


def _plain(segments: list[DeflatedSegment]) -> list[bytes]:
    return [segment.plain() for segment in segments]


class PartsResponse(Response):
    """Bytes in parts, sent one by one so that a slow reader holds nobody up. Knows whether all of them went out."""

    def __init__(self, parts: list[bytes], headers: dict[str, str]) -> None:
        super().__init__(None, 200, {**JSON, **headers, "content-length": str(sum(map(len, parts)))})
        self.parts = parts
        self.done: Callable[[bool], None] = lambda whole: None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        whole = False
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            for part in self.parts:
                if gone.done():
                    return
                await send({"type": "http.response.body", "body": part, "more_body": True})
            # The server waits in `send` for what was written before; so this returns when all is on its way.
            await send({"type": "http.response.body", "body": b"", "more_body": True})
            await asyncio.sleep(0)
            whole = not gone.done()
            await send({"type": "http.response.body", "body": b""})
        finally:
            gone.cancel()
            self.done(whole)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
