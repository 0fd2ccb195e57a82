"""Who may look: this machine alone, or whoever has the token; and what a browser is allowed to do with the page."""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any, Self
from urllib.parse import parse_qs

from shoal.network import is_loopback

TOKEN = "SHOAL_VIEW_TOKEN"
COOKIE = "shoal_view_token"

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Visitors:
    """Who is let in. On a loopback address anybody on this machine, if the page was asked for under a loopback name, so
    that no other site can have its own name lead here; elsewhere whoever has the token."""

    token: str = ""

    @classmethod
    def for_host(cls, host: str) -> Self:
        """None is needed on a loopback address; elsewhere it is $SHOAL_VIEW_TOKEN, or made up."""
        given = os.environ.get(TOKEN, "")
        return cls(given if given or is_loopback(host) else secrets.token_urlsafe(24))

    def refusal(self, headers: dict[str, str], query: str) -> str | None:
        """Why a request is refused, or None."""
        # Following a link from elsewhere to the page itself (navigate) is what links are for.
        from_elsewhere = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if from_elsewhere and headers.get("sec-fetch-mode") != "navigate":
            return "requests that a web page of another origin makes are refused"
        if self.token:
            if any(hmac.compare_digest(one.encode(), self.token.encode()) for one in _given(headers, query)):
                return None
            return "this page needs the token that `shoal view` printed: open its address with ?token=TOKEN"
        name = headers.get("host", "").rpartition(":")[0] if _has_port(headers) else headers.get("host", "")
        if not is_loopback(name.strip("[]")):
            return "shoal view answers on this machine only: open http://127.0.0.1:PORT, or start it with --host"
        return None


class Guard:
    """ASGI: refuses who may not look, and sets the headers of every reply."""

    def __init__(self, app: Any, visitors: Visitors) -> None:
        self.app = app
        self.visitors = visitors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        query = scope["query_string"].decode("latin-1")
        more: list[tuple[bytes, bytes]] = []

        async def reply(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                given = {key for key, _ in message["headers"]}
                ours = [(key.encode(), value.encode()) for key, value in HEADERS.items() if key.encode() not in given]
                message["headers"] = [*message["headers"], *ours, *more]
            await send(message)

        why = self.visitors.refusal(headers, query)
        if scope["method"] not in ("GET", "HEAD"):
            why = "shoal view only shows: GET alone is answered"
        if why is not None:
            await _plain(reply, 403, why)
        elif self.visitors.token and "token" in parse_qs(query):
            # From here on the cookie says it: the token stays out of addresses that are sent on.
            cookie = f"{COOKIE}={self.visitors.token}; HttpOnly; SameSite=Strict; Path=/"
            more = [(b"set-cookie", cookie.encode()), (b"location", b"/")]
            await _plain(reply, 303, "")
        else:
            await self.app(scope, receive, reply)


async def _plain(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


def _has_port(headers: dict[str, str]) -> bool:
    host = headers.get("host", "")
    return host.rpartition(":")[2].isdigit() and (host.count(":") == 1 or "]:" in host)


def _given(headers: dict[str, str], query: str) -> list[str]:
    """Tokens that came with a request: in the address, in the cookie, as a bearer."""
    tokens = parse_qs(query).get("token", [])
    cookie: SimpleCookie = SimpleCookie()
    try:
        cookie.load(headers.get("cookie", ""))
    except CookieError:
        cookie = SimpleCookie()
    if COOKIE in cookie:
        tokens.append(cookie[COOKIE].value)
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        tokens.append(bearer.strip())
    return tokens
