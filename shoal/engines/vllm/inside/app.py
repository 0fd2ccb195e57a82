"""The vLLM server that Shoal launches: vLLM's own API server with a few routes of Shoal's in front.

    python -m shoal.engines.vllm.inside.app --model=DIR ...      vLLM's arguments

One completion per HTTP request costs more than sampling it does, for a small model; here a whole list goes in by one
request, and results come out as lines of JSON, as they are there. `ShoalRoutes` is an ASGI middleware,
which vLLM takes by its name, so nothing inside vLLM is replaced. The routes for others than the trainer stand in
vllm_routes.py.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from logging import getLogger
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from shoal.child_process import end_with_owner
from shoal.engines.servers.results import Results, to_lines
from shoal.engines.vllm import compat as vllm_compat
from shoal.engines.vllm.inside import routes as vllm_routes

logger = getLogger(__name__)

PREFIX = "/shoal"
VLLM_MODES = {"drain": "wait", "keep": "keep", "abort": "abort"}
OPEN_PATHS = ("/health", "/ping")  # answered without a key

Handler = Callable[[Request], Awaitable[Response]]


def engine_of(request: Request) -> Any:
    """The AsyncLLM behind a route."""
    return request.scope["shoal.vllm"].engine_client


async def generate(request: Request) -> Response:
    """A list of requests in; their results as lines, as they are there. Requests end with the connection."""
    requests = msgspec.json.decode(await request.body())["requests"]
    return StreamingResponse(
        _lines(engine_of(request), requests, request.scope["shoal.vllm"]), media_type="application/x-ndjson"
    )


async def _lines(engine: Any, requests: Sequence[dict[str, Any]], state: Any) -> AsyncIterator[bytes]:
    results = Results(len(requests))

    async def one(asked: dict[str, Any]) -> None:
        try:
            results.put(await vllm_compat.generate(engine, asked, getattr(state, "shoal_adapter", None)))
        except Exception as error:  # noqa: BLE001 - raised again below: it ends the stream, and the client asks elsewhere
            results.fail(error)

    tasks = [asyncio.create_task(one(asked)) for asked in requests]
    try:
        async for chunk in results.chunks():
            yield to_lines(chunk)
    finally:
        for task in tasks:
            task.cancel()


async def about(request: Request) -> Response:
    """How the server was started, as far as a trainer must know."""
    return JSONResponse(vllm_compat.about(engine_of(request)))


async def counts(request: Request) -> Response:
    """Tokens sampled so far of every request in flight, by id."""
    return JSONResponse(vllm_compat.in_flight_counts(engine_of(request)))


async def abort(request: Request) -> Response:
    """Ends requests early; their results come out where they were asked for."""
    await engine_of(request).abort((await request.json())["ids"])
    return JSONResponse({})


async def call(request: Request) -> Response:
    """Calls a method of the workers' extension. Unlike vLLM's own route it leaves numbers numbers."""
    body = await request.json()
    found = await engine_of(request).collective_rpc(
        body["method"], timeout=body["timeout"], args=tuple(body["arguments"])
    )
    vllm_routes.forget_version(request.scope["shoal.vllm"])
    return JSONResponse({"results": found})


async def pause(request: Request) -> Response:
    """Stops generation: `drain` lets requests end, `keep` holds them, `abort` ends them."""
    mode = VLLM_MODES[(await request.json())["mode"]]
    await engine_of(request).pause_generation(mode=mode, clear_cache=False)
    return JSONResponse({})


async def resume(request: Request) -> Response:
    # Whoever changed weights did it in the pause.
    vllm_routes.forget_version(request.scope["shoal.vllm"])
    await engine_of(request).resume_generation()
    return JSONResponse({})


async def reset_prefix_cache(request: Request) -> Response:
    """Forgets cached keys and values; requests in flight are run again from their first token."""
    return JSONResponse({"done": bool(await engine_of(request).reset_prefix_cache(True, False))})


async def adapter(request: Request) -> Response:
    """Takes an adapter; requests that come later use it."""
    body = await request.json()
    loaded = vllm_compat.adapter_request(body["name"], body["folder"])
    done = bool(await engine_of(request).add_lora(loaded))
    if done:
        request.scope["shoal.vllm"].shoal_adapter = loaded
        vllm_routes.forget_version(request.scope["shoal.vllm"])
    return JSONResponse({"done": done})


ROUTES: dict[str, Handler] = {
    f"{PREFIX}/{handler.__name__}": handler
    for handler in (about, generate, counts, abort, call, pause, resume, reset_prefix_cache, adapter)
}


class ShoalRoutes:
    """ASGI middleware: Shoal's routes, and where the server has a key, that key asked for on every route.

    vLLM itself guards /v1 only, and leaves the routes that change weights open.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        routes = {path: (("POST",), handler) for path, handler in ROUTES.items()} | vllm_routes.ROUTES
        self.own = Starlette(
            routes=[Route(path, handler, methods=list(methods)) for path, (methods, handler) in routes.items()]
        )
        self.paths = set(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await vllm_routes.share(scope["app"].state)
        if scope["type"] == "http":
            state = scope["app"].state
            keys = state.args.api_key or [key for key in [os.environ.get("VLLM_API_KEY")] if key]
            if scope["path"] not in OPEN_PATHS and keys and not _allowed(Headers(scope=scope), keys):
                await JSONResponse({"error": "this server asks for its key"}, 401)(scope, receive, send)
                return
            if scope["path"] in self.paths:
                await self.own({**scope, "shoal.vllm": state}, receive, send)
                return
        await self.app(scope, receive, send)


def _allowed(headers: Headers, keys: Sequence[str]) -> bool:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and any(secrets.compare_digest(given.encode(), key.encode()) for key in keys)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves until it is told to end, or the process that launched it has ended."""
    end_with_owner()
    given = list(sys.argv[1:] if arguments is None else arguments)
    vllm_compat.serve([*given, f"--middleware={ShoalRoutes.__module__}.{ShoalRoutes.__name__}"])


if __name__ == "__main__":
    # As a module of its name, so that vLLM's import of the middleware finds these very objects.
    from shoal.engines.vllm.inside.app import main as serve

    serve()
