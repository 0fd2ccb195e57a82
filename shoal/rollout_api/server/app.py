"""The HTTP side: Atropos's 13 paths, and /ack, /healthz, /metrics. What they mean stands in `protocol.py`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from logging import getLogger
from typing import Any

from fastapi import FastAPI, Request, Response
from msgspec.json import Decoder
from starlette.responses import PlainTextResponse

from shoal.rollout_api.protocol import (
    WAIT_FOR_TRAINER,
    WEIGHTS_VERSION,
    Acknowledgement,
    EnvironmentId,
    EnvironmentRegistration,
    Registration,
    ScoredGroup,
)
from shoal.rollout_api.server import metrics
from shoal.rollout_api.server.access import Tokens
from shoal.rollout_api.server.bodies import BadRequestError, Bodies
from shoal.rollout_api.server.compression import DeflatedSegment
from shoal.rollout_api.server.intake import InvalidBodyError
from shoal.rollout_api.server.openapi import body_of, describe
from shoal.rollout_api.server.packer import Shortage
from shoal.rollout_api.server.records import FullError, OutOfOrderError, ServerOptions, UnknownError
from shoal.rollout_api.server.replies import batch_reply, is_far, refusal, reply, stored_reply, wrong_body
from shoal.rollout_api.server.request_gate import RequestGate
from shoal.rollout_api.server.server_state import ServerState
from shoal.rollout_api.server.store import GoneError, Store
from shoal.rollout_api.server.writer import StoreError

logger = getLogger(__name__)

REGISTRATION = Decoder(Registration)
ENVIRONMENT_REGISTRATION = Decoder(EnvironmentRegistration)
ENVIRONMENT_ID = Decoder(EnvironmentId)
ACKNOWLEDGEMENT = Decoder(Acknowledgement)
EMPTY_EXAMPLE: dict[str, list[Any]] = {
    name: []
    for name in (
        "tokens",
        "masks",
        "scores",
        "advantages",
        "ref_logprobs",
        "generation_params",
        "inference_logprobs",
        "messages",
        "images",
    )
}
"""What /latest_example says before there is one, as Atropos's server does."""


def build_app(store: Store, options: ServerOptions, tokens: Tokens) -> RequestGate:
    """The application. Closes the store when it ends."""
    bodies = Bodies(options.max_request, drop_extra=options.drop_extra)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        bodies.close()
        store.close()

    app = FastAPI(title="Shoal's rollout API", lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False)
    state = ServerState(store, options)
    add_errors(app)
    add_trainer_paths(app, state, bodies)
    add_environment_paths(app, state, bodies)
    add_common_paths(app, state)
    describe(app)
    return RequestGate(app, state, bodies, tokens, answer_to)


def add_trainer_paths(app: FastAPI, state: ServerState, bodies: Bodies) -> None:
    """What the trainer asks for."""

    @app.post("/register", openapi_extra=body_of(Registration))
    async def register(request: Request) -> Response:
        registration = await bodies.message(request, REGISTRATION)
        return reply({"uuid": await state.register(registration)})

    @app.get("/batch")
    async def batch(request: Request) -> Response:
        query = request.query_params
        version = query.get(WEIGHTS_VERSION)
        if version is not None and not (version.isascii() and version.isdigit() and len(version) < 16):
            raise BadRequestError(422, f"{WEIGHTS_VERSION}={version}: a number from 0")
        if query.get("ack", "next") not in ("next", "explicit"):
            raise BadRequestError(422, f"ack={query['ack']}: explicit, or leave it out")
        explicit = query.get("ack") == "explicit"
        held = None if version is None else int(version)
        delivery = await state.next_batch(explicit=explicit, version=held, shrink=is_far(request))
        if isinstance(delivery, Shortage):
            return reply({"batch": None, "reason": delivery.reason})
        return await batch_reply(request, delivery, lambda whole: state.delivered(delivery, whole=whole))

    @app.post("/ack", openapi_extra=body_of(Acknowledgement))
    async def acknowledge(request: Request) -> Response:
        done = await bodies.message(request, ACKNOWLEDGEMENT)
        await state.acknowledge(done.lease, done.weights_version)
        return reply({"status": "success"})

    @app.get("/latest_example")
    async def latest_example(request: Request) -> Response:
        latest = state.latest
        if latest is None:
            return reply(EMPTY_EXAMPLE)
        return await stored_reply(
            request, [latest if isinstance(latest, DeflatedSegment) else DeflatedSegment.of(latest)]
        )

    @app.get("/reset_data")
    async def reset_data() -> Response:
        await state.reset()
        return PlainTextResponse("Reset successful")


def add_environment_paths(app: FastAPI, state: ServerState, bodies: Bodies) -> None:
    """What environments ask for."""

    @app.post("/register-env", openapi_extra=body_of(EnvironmentRegistration))
    async def register_env(request: Request) -> Response:
        registration = await bodies.message(request, ENVIRONMENT_REGISTRATION)
        answer = await state.register_environment(registration)
        return reply({"status": answer.status} if answer.status == WAIT_FOR_TRAINER else answer)

    @app.post("/disconnect-env", openapi_extra=body_of(EnvironmentId))
    async def disconnect_env(request: Request) -> Response:
        env_id = (await bodies.message(request, ENVIRONMENT_ID)).env_id
        try:
            await state.disconnect(env_id)
        except UnknownError as error:
            return refusal(404, str(error), {"status": "failure", "error": str(error)})
        return reply({"status": "success"})

    @app.get("/status-env", openapi_extra=body_of(EnvironmentId))
    async def status_env(request: Request) -> Response:
        return reply(state.environment_status((await bodies.message(request, ENVIRONMENT_ID)).env_id))

    # RequestGate handles these two. They are declared here for the OpenAPI description.
    @app.post("/scored_data", openapi_extra=body_of(ScoredGroup))
    async def scored_data() -> None: ...

    @app.post("/scored_data_list", openapi_extra=body_of(list[ScoredGroup]))
    async def scored_data_list() -> None: ...


def add_common_paths(app: FastAPI, state: ServerState) -> None:
    """What everybody may ask."""

    @app.get("/")
    async def root() -> Response:
        return reply({"message": "Shoal's rollout API, compatible with AtroposLib API"})

    @app.get("/info")
    async def info() -> Response:
        trainer = state.progress.registration
        size, longest = (trainer.batch_size, trainer.max_token_len) if trainer else (-1, -1)
        return reply({"batch_size": size, "max_token_len": longest})

    @app.get("/wandb_info")
    async def wandb_info() -> Response:
        trainer = state.progress.registration
        return reply({"group": trainer and trainer.wandb_group, "project": trainer and trainer.wandb_project})

    @app.get("/status")
    async def status() -> Response:
        return reply(state.status())

    @app.get("/healthz")
    async def healthz() -> Response:
        failure = state.store.failure
        return refusal(503, f"the store cannot be written: {failure}") if failure else reply({"status": "ok"})

    @app.get("/metrics")
    async def metrics_text() -> Response:
        text = metrics.render(state.counters, state.gauges())
        return Response(text, headers={"content-type": metrics.CONTENT_TYPE})


def answer_to(error: Exception) -> Response:
    """How an error is told; one that is not listed is raised again."""
    match error:
        case InvalidBodyError():
            return wrong_body(error.message, error.where)
        case BadRequestError():
            return refusal(error.status, error.reason)
        case UnknownError():
            return refusal(404, str(error))
        case GoneError():
            return refusal(409, str(error))
        case OutOfOrderError():
            # Atropos's clients look for these three.
            return refusal(409, str(error), {"status": "error", "message": str(error), "batch": []})
        case FullError():
            return refusal(503, f"full: {error}; nothing was stored, send it again")
        case StoreError():
            return refusal(503, f"the store cannot be written: {error}; nothing was stored, send it again")
    raise error


TOLD = (InvalidBodyError, BadRequestError, UnknownError, GoneError, OutOfOrderError, FullError, StoreError)


def add_errors(app: FastAPI) -> None:
    """Tells errors in words."""

    async def handler(_: Request, error: Exception) -> Response:
        return answer_to(error)

    for kind in TOLD:
        app.add_exception_handler(kind, handler)
