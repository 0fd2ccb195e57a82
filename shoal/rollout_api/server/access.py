"""Who may ask for what: tokens for two roles, and no requests that a web page makes in somebody's browser."""

from __future__ import annotations

import base64
import binascii
import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from shoal.errors import ConfigError
from shoal.network import refuse_public_without_token
from shoal.rollout_api.protocol import ENVIRONMENT_TOKEN, TRAINER_TOKEN

TRAINER, ENVIRONMENT = "trainer", "environment"
ROLES = {
    "/register": TRAINER,
    "/batch": TRAINER,
    "/ack": TRAINER,
    "/reset_data": TRAINER,
    "/latest_example": TRAINER,
    "/register-env": ENVIRONMENT,
    "/disconnect-env": ENVIRONMENT,
    "/status-env": ENVIRONMENT,
    "/scored_data": ENVIRONMENT,
    "/scored_data_list": ENVIRONMENT,
}
"""What one role alone may ask. The other paths need either token; OPEN ones none."""
OPEN = {"/", "/healthz"}


@dataclass(frozen=True)
class Tokens:
    """The secrets by role. Without them everybody may ask for everything."""

    trainer: str = ""
    environment: str = ""

    @classmethod
    def for_host(cls, host: str) -> Self:
        """From the process's environment.

        Raises:
            ConfigError: the address is public and a token is missing; only one is set; both are the same.
        """
        tokens = cls(os.environ.get(TRAINER_TOKEN, ""), os.environ.get(ENVIRONMENT_TOKEN, ""))
        by_name = {TRAINER_TOKEN: tokens.trainer, ENVIRONMENT_TOKEN: tokens.environment}
        refuse_public_without_token(host, by_name, option="--host", users="the trainer and the environments run")
        missing = [name for name, token in by_name.items() if not token]
        if len(missing) == 1:
            raise ConfigError(f"{missing[0]} is not set but the other token is: set both, or none")
        if not missing and tokens.trainer == tokens.environment:
            raise ConfigError(f"{TRAINER_TOKEN} and {ENVIRONMENT_TOKEN} are the same: give each role its own")
        return tokens

    def refusal(self, path: str, headers: Mapping[str, str]) -> tuple[int, str] | None:
        """Status and reason where a request may not be made."""
        if ("sec-fetch-site" in headers or "origin" in headers) and _foreign(headers):
            return 403, "requests that a web page of another origin makes are refused"
        if not self.trainer or path in OPEN:
            return None
        given = _token_in(headers.get("authorization", ""))
        role = next((name for name in (TRAINER, ENVIRONMENT) if _same(given, getattr(self, name))), None)
        if role is None:
            return (
                401,
                "this server needs a token: Authorization: Bearer TOKEN, or http://any:TOKEN@host:port as its URL",
            )
        if ROLES.get(path, role) != role:
            return 403, f"{path} is for the {ROLES[path]}'s token, this is the {role}'s"
        return None


def _foreign(headers: Mapping[str, str]) -> bool:
    origin = headers.get("origin")
    foreign = origin is not None and origin.partition("://")[2] != headers.get("host")
    return foreign or headers.get("sec-fetch-site", "none") not in ("none", "same-origin")


def _token_in(authorization: str) -> str:
    scheme, _, rest = authorization.strip().partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(rest, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""


def _same(given: str, secret: str) -> bool:
    return hmac.compare_digest(given.encode(), secret.encode())
