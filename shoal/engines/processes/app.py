"""Shoal's routes for the built-in engine in a process of its own; those of a vLLM server have the same names.

A whole list of requests goes in by one HTTP request, and results come out as lines of JSON, as they are
there. All routes but /health ask for the key that whoever launched the process gave it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from shoal.engines.base import EngineOutput
from shoal.engines.processes.held import HeldEngine, request_of, result_of
from shoal.engines.processes.worker import TorchWorker
from shoal.engines.servers.results import Results, to_lines
from shoal.types import Segment

KEY_VARIABLE = "SHOAL_PROCESS_KEY"


class Routes:
    """The handlers over one engine."""

    def __init__(self, held: HeldEngine) -> None:
        self.held = held
        self.worker = TorchWorker(held.engine)

    async def health(self, request: Request) -> Response:
        """That the process lives and its engine's thread too."""
        alive = self.held.thread.is_alive()
        return JSONResponse({"status": "ok" if alive else "dead"}, 200 if alive else 503)

    async def generate(self, request: Request) -> Response:
        """Completions, and log-probs of given tokens. Requests end with the connection."""
        requests = msgspec.json.decode(await request.body())["requests"]
        return StreamingResponse(self._lines(requests), media_type="application/x-ndjson")

    async def _lines(self, forms: Sequence[dict[str, Any]]) -> AsyncIterator[bytes]:
        sampled = [form for form in forms if "score_from" not in form]
        results = Results(len(sampled))
        waiting = {form["id"] for form in sampled}

        def answer(output: EngineOutput) -> None:
            results.put(result_of(output))

        if sampled:
            self.held.ask([(request_of(form), answer) for form in sampled])
        try:
            if len(sampled) < len(forms):
                yield to_lines(await self._scored([form for form in forms if "score_from" in form]))
            async for chunk in results.chunks():
                waiting -= {result["id"] for result in chunk}
                yield to_lines(chunk)
        finally:
            if waiting:
                self.held.withdraw(list(waiting))

    async def _scored(self, forms: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        if not forms:
            return []
        segments = []
        for form in forms:
            context, sampled = form["prompt"][: form["score_from"]], form["prompt"][form["score_from"] :]
            segments.append(Segment(context, sampled, [0.0] * len(sampled), [True] * len(sampled)))
        rows = await asyncio.wrap_future(self.held.call(lambda: self.held.engine.logprobs(segments)))
        return [
            {"id": form["id"], "tokens": [], "logprobs": row, "reason": "stop"}
            for form, row in zip(forms, rows, strict=True)
        ]

    async def counts(self, request: Request) -> Response:
        """Tokens sampled so far of every request in flight, by id."""
        return JSONResponse(await asyncio.wrap_future(self.held.call(self.held.engine.in_flight_counts)))

    async def load(self, request: Request) -> Response:
        """What `HeldEngine.load` says."""
        return JSONResponse(self.held.load())

    async def abort(self, request: Request) -> Response:
        """Ends requests early; their results come out where they were asked for."""
        self.held.withdraw((await request.json())["ids"])
        return JSONResponse({})

    async def call(self, request: Request) -> Response:
        """Calls a method of `TorchWorker`."""
        body = await request.json()
        if body["method"] not in TorchWorker.METHODS:
            return JSONResponse({"error": f"there is no method {body['method']}"}, 422)
        method = getattr(self.worker, body["method"])
        try:
            found = await asyncio.wrap_future(self.held.call(lambda: method(*body["arguments"])))
        except Exception as error:  # noqa: BLE001 - whoever called is told, whatever it is
            return JSONResponse({"error": f"{type(error).__name__}: {error}"}, 422)
        return JSONResponse({"results": [found]})

    async def pause(self, request: Request) -> Response:
        """Stops generation: `drain` lets requests end, `keep` holds them, `abort` ends them."""
        await asyncio.wrap_future(self.held.pause((await request.json())["mode"]))
        return JSONResponse({})

    async def resume(self, request: Request) -> Response:
        """Generates again."""
        await asyncio.wrap_future(self.held.resume())
        return JSONResponse({})


class WithKey:
    """ASGI middleware: everything but /health asks for the key."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app = app
        self.wanted = f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != "/health":
            given = Headers(scope=scope).get("authorization", "").encode()
            if not secrets.compare_digest(given, self.wanted):
                await JSONResponse({"error": "this process asks for its key"}, 401)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def make_app(held: HeldEngine, key: str) -> ASGIApp:
    """The application over an engine."""
    routes = Routes(held)
    posts = (routes.generate, routes.counts, routes.abort, routes.call, routes.pause, routes.resume)
    app = Starlette(
        routes=[
            Route("/health", routes.health),
            Route("/shoal/load", routes.load),
            *(Route(f"/shoal/{handler.__name__}", handler, methods=["POST"]) for handler in posts),
        ]
    )
    return WithKey(app, key)
