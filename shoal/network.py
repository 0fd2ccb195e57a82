"""Addresses of this machine: which of them only it can reach, and what may be served on the others."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from ipaddress import ip_address

from shoal.errors import ConfigError


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def refuse_public_without_token(host: str, secrets: Mapping[str, str | None], *, option: str, users: str) -> None:
    """Whoever serves calls this before it listens.

    Args:
        host: The address that is to be served on.
        secrets: Environment variables and their values. All are needed on an address that others can reach.
        option: The option that named the host, such as --host.
        users: Who needs the secrets too, with its verb: "the environments run".

    Raises:
        ConfigError: other machines can reach the address, and a secret is missing.
    """
    missing = [name for name, value in secrets.items() if not value]
    if missing and not is_loopback(host):
        secret = "a secret" if len(missing) == 1 else "secrets"
        raise ConfigError(
            f"{option}={host} can be reached from other machines: set {' and '.join(missing)} to {secret} here and "
            f"where {users}, or leave {option} out"
        )


def free_port(host: str) -> int:
    """A port that nothing listens on just now."""
    with socket.socket() as found:
        found.bind((host, 0))
        return int(found.getsockname()[1])


def listen(host: str, port: int, *, option: str, backlog: int = 128) -> socket.socket:
    """A socket that listens there; 0 is any free port. `option` is the one that names the port, for the error's line.

    Raises:
        ConfigError: the address is taken, or is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=backlog)
    except OSError as error:
        raise ConfigError(f"{host} port {port} cannot be served: {error}; choose another {option}") from error
