"""`shoal view`: serves the page until Ctrl-C or SIGTERM."""

from __future__ import annotations

import getpass
import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from logging import getLogger
from pathlib import Path

import uvicorn

from shoal.errors import ConfigError
from shoal.network import is_loopback, listen
from shoal.view.access import Visitors
from shoal.view.app import build_app

logger = getLogger(__name__)

FIRST_PORT, TRIED_PORTS = 7600, 20


def serve_view(paths: Sequence[Path], host: str, port: int | None, descriptor: int | None = None) -> int:
    """Serves; the exit status. `port` None: the first free one from 7600 on; 0: any. `descriptor` is that of a socket
    that listens on a loopback address already.

    Raises:
        ConfigError: the address cannot be served.
        DataError: a path does not exist.
    """
    visitors = Visitors.for_host(host)
    app = build_app(paths, visitors)
    with socket.socket(fileno=descriptor) if descriptor is not None else _listen(host, port) as listening:
        number = listening.getsockname()[1]
        logger.info("shoal view: %s", address(host, number, visitors.token))
        for line in how_to_reach(host, number):
            logger.info("%s", line)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=2,
        )
        # uvicorn ends in order on both signals, then raises them again for whoever handled them before.
        for one in (signal.SIGINT, signal.SIGTERM):
            signal.signal(one, lambda *_: None)
        uvicorn.Server(config).run(sockets=[listening])
    return 0


def address(host: str, port: int, token: str = "") -> str:
    """What to open in a browser."""
    shown = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/{f'?token={token}' if token else ''}"


def how_to_reach(host: str, port: int) -> list[str]:
    """Words for somebody who is on this machine by ssh: how the page gets to the browser on their own."""
    if "SSH_CONNECTION" not in os.environ or not is_loopback(host):
        return []
    here = os.environ["SSH_CONNECTION"].split()[2:3] or [socket.gethostname()]
    return [
        "from your own machine: "
        f"ssh -L {port}:127.0.0.1:{port} {getpass.getuser()}@{here[0]}  then open http://127.0.0.1:{port}/"
    ]


def _listen(host: str, port: int | None) -> socket.socket:
    ports = range(FIRST_PORT, FIRST_PORT + TRIED_PORTS) if port is None else [port]
    for one in ports[:-1]:
        with suppress(ConfigError):
            return listen(host, one, option="--port")
    return listen(host, ports[-1], option="--port")
