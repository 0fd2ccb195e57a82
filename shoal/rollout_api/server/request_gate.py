"""The ASGI layer in front of FastAPI: access checks, and the two routes that receive groups.

Routing in FastAPI and Starlette's request and response objects take longer than storing a small group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from msgspec import json as msgjson
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from shoal.rollout_api.server.access import Tokens
from shoal.rollout_api.server.bodies import Bodies
from shoal.rollout_api.server.intake import InvalidBodyError
from shoal.rollout_api.server.replies import refusal
from shoal.rollout_api.server.server_state import ServerState

ONE, MANY = "/scored_data", "/scored_data_list"


class RequestGate:
    """Refuses requests without the right token, handles posted groups, and passes other requests on; counts errors.

    Args:
        app: Handles all other requests.
        tell: The reply for an error that the client may see; raises any other error again.
    """

    def __init__(
        self, app: ASGIApp, state: ServerState, bodies: Bodies, tokens: Tokens, tell: Callable[[Exception], Response]
    ) -> None:
        self.app = app
        self.state = state
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
        self.state.check_room()
        groups = await self.bodies.groups(headers, receive, many=many, peer=peer)
        try:
            self.state.check(groups)
        except InvalidBodyError as error:
            raise InvalidBodyError(error.message, error.where if many else error.where[1:]) from error
        await self.state.post(groups)
        if not many:
            return b'{"status":"received"}'
        return msgjson.encode({"status": "received", "groups_processed": len(groups)})

    async def _answer_otherwise(self, answer: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                status = message["status"]
                self.state.counters["refused"] += 400 <= status < 500
                self.state.counters["unavailable"] += status == 503
            await send(message)

        await answer(scope, receive, counted)


def _headers_of(scope: Scope) -> dict[str, str]:
    """By name, the first of each. Starlette's own mapping searches all of them at every question."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}
