"""The bodies in the OpenAPI description, from the protocol's types: FastAPI does not read them here."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from msgspec.json import schema_components

from shoal.rollout_api.protocol import (
    Acknowledgement,
    EnvironmentId,
    EnvironmentRegistration,
    Registration,
    ScoredGroup,
)

TEMPLATE = "#/components/schemas/{name}"
MESSAGES = (Registration, EnvironmentRegistration, EnvironmentId, Acknowledgement, ScoredGroup)
ERRORS = {
    "400": "the body cannot be read",
    "401": "no token",
    "403": "the other role's token, or a request of a web page",
    "404": "unknown lease or environment",
    "408": "the body did not arrive",
    "409": "out of order",
    "413": "too large",
    "415": "unknown encoding",
    "422": "the body is wrong; detail says where",
    "503": "full, or the store cannot be written: ask again after Retry-After seconds",
}


def body_of(kind: Any) -> dict[str, Any]:
    """What a path's description says of its body."""
    (schema,), _ = schema_components([kind], ref_template=TEMPLATE)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def describe(app: FastAPI) -> None:
    """Completes the description with the bodies' types and the errors."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            description = plain()
            _, schemas = schema_components(MESSAGES, ref_template=TEMPLATE)
            description.setdefault("components", {}).setdefault("schemas", {}).update(schemas)
            for path in description["paths"].values():
                for operation in path.values():
                    errors = {status: {"description": text} for status, text in ERRORS.items()}
                    operation["responses"] = {"200": {"description": "done"}, **errors}
            app.openapi_schema = description
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
