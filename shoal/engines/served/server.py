"""The built-in engine behind HTTP: POST /generate (generate_dialect.py), and GET /health."""

from __future__ import annotations

import asyncio
import hmac
import os
import secrets
from logging import getLogger
from threading import Thread
from time import monotonic, sleep
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from uvicorn import Config, Server

from shoal.engines import base
from shoal.engines.base import EngineOutput
from shoal.engines.served.dialect import GenerateRequest, reply
from shoal.engines.served.engine import ServedEngine
from shoal.engines.stopping import text_decoder
from shoal.errors import ConfigError, EngineError
from shoal.network import listen, refuse_public_without_token
from shoal.types import StopReason

logger = getLogger(__name__)

TOKEN_VARIABLE = "SHOAL_ENGINE_TOKEN"
START_SECONDS = 30.0
GRACE_SECONDS = 3
PendingOutputs = dict["asyncio.Future[EngineOutput]", asyncio.AbstractEventLoop]
LOOK_SECONDS = 1.0  # between two looks at whether whoever asked is still there


def make_app(engine: ServedEngine, tokenizer: Any, token: str | None) -> FastAPI:
    """The application; `token` is asked for as a bearer's where there is one."""
    decode = text_decoder(tokenizer, engine.ends.nonzero()[0].tolist())
    app = FastAPI(title="Shoal's built-in engine", docs_url=None, redoc_url=None)
    app.state.waiting = {}

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {
            "status": "ok",
            "version": engine.version,
            "open": engine.open.is_set(),
            "served": engine.served,
            "accepts": ["seeds"],
        }

    @app.post("/generate")
    async def generate(body: GenerateRequest, request: Request) -> dict[str, Any]:
        given = request.headers.get("Authorization", "")
        if token and not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            raise HTTPException(401, f"this engine needs the token of {TOKEN_VARIABLE}")
        if body.stream:
            raise HTTPException(422, "stream: completions come whole only; leave it out")
        prompt = tokenizer(body.prompt)["input_ids"] if isinstance(body.prompt, str) else body.prompt.prompt_token_ids
        if not prompt:
            raise HTTPException(422, "prompt: it has no token")
        if max(prompt) >= engine.vocabulary:
            raise HTTPException(422, f"prompt: {max(prompt)} is no id of a vocabulary of {engine.vocabulary}")
        outputs = await asyncio.gather(*_asked(engine, body, prompt, request, app.state.waiting))
        return reply(prompt, outputs, decode)

    return app


def _asked(
    engine: ServedEngine, body: GenerateRequest, prompt: list[int], request: Request, waiting: PendingOutputs
) -> list[Any]:
    """One awaitable output for each completion; they are in `waiting` until they have one."""
    name, loop, waits = secrets.token_hex(8), asyncio.get_running_loop(), []
    for index, seed in enumerate(body.seed_of_each()):
        future: asyncio.Future[EngineOutput] = loop.create_future()
        waiting[future] = loop
        future.add_done_callback(lambda done: waiting.pop(done, None))
        asked = base.Request(f"{name}/{index}", tuple(prompt), seed, body.sampling(), group=name)
        try:
            engine.ask(asked, lambda output, future=future: _settle(loop, future, output))  # type: ignore[misc]
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        except EngineError as error:
            raise HTTPException(503, str(error)) from error
        waits.append(_awaited(engine, asked.id, future, request))
    return waits


def _settle(loop: asyncio.AbstractEventLoop, future: asyncio.Future[EngineOutput], output: EngineOutput) -> None:
    def set_result() -> None:
        if not future.done():
            future.set_result(output)

    if not loop.is_closed():
        loop.call_soon_threadsafe(set_result)


async def _awaited(
    engine: ServedEngine, name: str, future: asyncio.Future[EngineOutput], request: Request
) -> EngineOutput:
    """The output; the request is withdrawn where the one who asked hangs up. The trainer says when it is worked on, so
    there is no deadline here: whoever asks has one."""
    while not future.done():
        await asyncio.wait([future], timeout=LOOK_SECONDS)
        if not future.done() and await request.is_disconnected():
            engine.withdraw([name])
            future.cancel()
    return await future


class GenerateServer:
    """Serves an engine from a thread of this process until it is closed.

    Raises:
        ConfigError: the address is public and no token is set, or the port is taken.
    """

    def __init__(self, engine: ServedEngine, tokenizer: Any, host: str, port: int) -> None:
        token = os.environ.get(TOKEN_VARIABLE)
        refuse_public_without_token(
            host, {TOKEN_VARIABLE: token}, option="engine.serve_host", users="the environments run"
        )
        app = make_app(engine, tokenizer, token)
        self.waiting: PendingOutputs = app.state.waiting
        config = Config(
            app,
            host=host,
            port=port,
            log_level="error",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        self.server = Server(config)
        self.socket = listen(host, port, option="engine.serve_port")
        self.port: int = self.socket.getsockname()[1]
        self.url = f"http://{host}:{self.port}"
        self.thread = Thread(target=self.server.run, args=([self.socket],), name="engine server", daemon=True)
        self.thread.start()
        deadline = monotonic() + START_SECONDS
        while not self.server.started:
            if monotonic() > deadline or not self.thread.is_alive():
                raise ConfigError(f"the engine's server did not start within {START_SECONDS:.0f} s on {self.url}")
            sleep(0.01)
        logger.info("the engine answers at %s/generate", self.url)

    def close(self) -> None:
        """Stops taking requests; those that wait are told that it ended."""
        self.server.should_exit = True
        for future, loop in list(self.waiting.items()):
            _settle(loop, future, EngineOutput("", [], [], StopReason.ABORT))
        # They get their answers first: a request that is cut off is a traceback of the server's.
        self.thread.join(timeout=GRACE_SECONDS)
        self.server.force_exit = True
        self.thread.join(timeout=10)
        self.socket.close()
