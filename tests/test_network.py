"""Loopback, and what may be served where others can reach it."""

from __future__ import annotations

import pytest

from shoal.errors import ConfigError
from shoal.network import is_loopback, listen, refuse_public_without_token


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.0.0.9", True),
        ("localhost", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("10.0.0.1", False),
        ("example.org", False),
    ],
)
def test_only_loopback_addresses_are_taken_for_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("secrets", "named"),
    [
        ({"ONE": None}, "set ONE to a secret"),
        ({"ONE": "", "TWO": "given"}, "set ONE to a secret"),
        ({"ONE": "", "TWO": ""}, "set ONE and TWO to secrets"),
    ],
)
def test_a_public_address_is_refused_until_every_secret_is_set(secrets: dict[str, str | None], named: str) -> None:
    with pytest.raises(ConfigError, match=rf"^--host=0.0.0.0 can be reached .*{named} .* where readers run"):
        refuse_public_without_token("0.0.0.0", secrets, option="--host", users="readers run")
    refuse_public_without_token("127.0.0.1", secrets, option="--host", users="readers run")
    refuse_public_without_token("0.0.0.0", dict.fromkeys(secrets, "given"), option="--host", users="readers run")


def test_a_taken_port_is_refused_by_the_name_of_its_option() -> None:
    with listen("127.0.0.1", 0, option="--port") as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} cannot be served: .*; choose another engine.serve_port"):
            listen("127.0.0.1", port, option="engine.serve_port")
