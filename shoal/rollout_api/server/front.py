"""What stands before FastAPI: who may come in, and the two paths that carry the load.

FastAPI's way to a handler, and Starlette's requests and responses, cost more than storing a small group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from msgspec import json as msgjson
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from shoal.rollout_api.server.access import Tokens
from shoal.rollout_api.server.bodies import Bodies
from shoal.rollout_api.server.exchange import Exchange
from shoal.rollout_api.server.intake import RefusedError
from shoal.rollout_api.server.replies import refusal

ONE, MANY = "/scored_data", "/scored_data_list"


class Front:
    """Turns away what may not come in, takes posts in, hands on the rest; counts what is answered with an error.

    Args:
        app: Answers the rest.
        tell: An answer for an error that may be told; raises any other again.
    """

    def __init__(
        self, app: ASGIApp, exchange: Exchange, bodies: Bodies, tokens: Tokens, tell: Callable[[Exception], Response]
    ) -> None:
        self.app = app
        self.exchange = exchange
        self.bodies = bodies
        self.tokens = tokens
        self.tell = tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, headers = scope["path"], _headers_of(scope)
        refused = self.tokens.refusal(path, headers)
        if refused:
            await self._answer_otherwise(refusal(*refused), scope, receive, send)
        elif path in (ONE, MANY) and scope["method"] == "POST":
            try:
                client = scope.get("client")
                text = await self._take_in(headers, receive, many=path == MANY, peer=client[0] if client else "")
            except Exception as error:  # noqa: BLE001 what may not be told is raised again
                await self._answer_otherwise(self.tell(error), scope, receive, send)
            else:
                length = str(len(text)).encode()
                start = [(b"content-type", b"application/json"), (b"content-length", length)]
                await send({"type": "http.response.start", "status": 200, "headers": start})
                await send({"type": "http.response.body", "body": text})
        else:
            await self._answer_otherwise(self.app, scope, receive, send)

    async def _take_in(self, headers: Mapping[str, str], receive: Receive, *, many: bool, peer: str) -> bytes:
        """Reads, checks and stores; the answer."""
        # Asked before a long body is read, and again by `check` when it is.
        self.exchange.check_room()
        groups = await self.bodies.groups(headers, receive, many=many, peer=peer)
        try:
            self.exchange.check(groups)
        except RefusedError as error:
            raise RefusedError(error.message, error.where if many else error.where[1:]) from error
        await self.exchange.post(groups)
        if not many:
            return b'{"status":"received"}'
        return msgjson.encode({"status": "received", "groups_processed": len(groups)})

    async def _answer_otherwise(self, answer: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                status = message["status"]
                self.exchange.counters["refused"] += 400 <= status < 500
                self.exchange.counters["unavailable"] += status == 503
            await send(message)

        await answer(scope, receive, counted)


def _headers_of(scope: Scope) -> dict[str, str]:
    """By name, the first of each. Starlette's own mapping searches all of them at every question."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}
