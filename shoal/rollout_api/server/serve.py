"""`shoal serve api`: the rollout API until Ctrl-C or SIGTERM."""

from __future__ import annotations

import signal
from logging import getLogger
from pathlib import Path

import uvicorn

from shoal.network import listen
from shoal.rollout_api.server.access import Tokens
from shoal.rollout_api.server.app import build_app
from shoal.rollout_api.server.records import ServerOptions
from shoal.rollout_api.server.store import Store

logger = getLogger(__name__)

GRACE_SECONDS = 10


def serve_api(host: str, port: int, store: Path, options: ServerOptions) -> int:
    """Serves; the exit status.

    Raises:
        ConfigError: the address is public and tokens are missing, it cannot be served, or the store cannot be used.
    """
    tokens = Tokens.for_host(host)
    with listen(host, port, option="--port", backlog=1024) as listening:
        app = build_app(Store(store), options, tokens)
        app.bodies.start_worker()
        config = uvicorn.Config(
            app,
            loop="uvloop",
            http="httptools",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        logger.info("rollout API: http://%s:%d, store %s", host, listening.getsockname()[1], store)
        # uvicorn ends in order on both signals, then raises them again for whoever handled them before.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        uvicorn.Server(config).run(sockets=[listening])
    logger.info("the rollout API ends")
    return 0
