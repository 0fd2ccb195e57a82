"""`shoal serve code`: the sandbox behind HTTP.

POST /run takes `program`, `tests`, `limits` and `total_seconds`, and answers `results`, one a test. GET /health answers
what runs. Errors answer `error`: 400 bad input, 401 no token, 413 too long, 500 the sandbox failed, 503 no place left.
"""

from __future__ import annotations

import hmac
import json
import os
import signal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from logging import getLogger
from threading import BoundedSemaphore, Lock
from typing import Any

from shoal.errors import ConfigError, DataError
from shoal.network import refuse_public_without_token
from shoal.rewards.sandbox.client import BUSY, TOKEN_VARIABLE
from shoal.rewards.sandbox.core import Sandbox
from shoal.rewards.sandbox.limits import Limits
from shoal.rewards.sandbox.outcome import SandboxError, Tests
from shoal.rewards.sandbox.process import NOT_HELD

logger = getLogger(__name__)

LONGEST_REQUEST = 64 * 2**20
LONGEST_TOTAL = 600.0
QUEUE_PER_WORKER = 64
READ_SECONDS = 60.0


class CodeServer(ThreadingHTTPServer):
    """Runs at most `workers` programs at once and lets some more wait; the rest is told to come back.

    Raises:
        ConfigError: the address is public and no token is set, or the tier does not work here.
    """

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, host: str, port: int, *, tier: str, python: str | None, workers: int) -> None:
        self.token = os.environ.get(TOKEN_VARIABLE)
        refuse_public_without_token(host, {TOKEN_VARIABLE: self.token}, option="--host", users="the verifier runs")
        self.sandbox = Sandbox(tier, python=python)
        self.workers = workers
        self.places = BoundedSemaphore(workers * (1 + QUEUE_PER_WORKER))
        self.running = BoundedSemaphore(workers)
        self.lock = Lock()
        self.done = 0
        try:
            super().__init__((host, port), Handler)
        except OSError as error:
            raise ConfigError(f"{host} port {port} cannot be served: {error}; choose another --port") from error

    def run(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        """Runs one program; waits for a free worker.

        Raises:
            DataError: the request says something else than it should.
            SandboxError: the sandbox failed.
        """
        tests = Tests.from_json(request.get("tests"))
        try:
            limits = Limits(**request.get("limits", {}))
            total = min(float(request.get("total_seconds", LONGEST_TOTAL)), LONGEST_TOTAL)
            program = str(request["program"])
        except (TypeError, ValueError, KeyError) as error:
            raise DataError(f"a request needs program, tests, limits and total_seconds: {error!r}") from error
        if request.get("tier") == "bubblewrap" and self.sandbox.tier.name != "bubblewrap":
            raise DataError(
                f"this server runs tier {self.sandbox.tier.name}, which holds no hostile program, and bubblewrap is "
                "asked for: start it with --tier bubblewrap, or ask for it by name: reward.code.tier=process"
            )
        with self.running:
            results = self.sandbox.run(program, tests, limits, total_seconds=total)
        with self.lock:
            self.done += 1
        return [result.to_json() for result in results]


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: CodeServer
    protocol_version = "HTTP/1.1"
    timeout = READ_SECONDS

    def do_GET(self) -> None:
        """GET /health."""
        if self.path != "/health":
            self._answer(404, {"error": "there are POST /run and GET /health"})
        else:
            server = self.server
            self._answer(200, {"tier": server.sandbox.tier.name, "workers": server.workers, "done": server.done})

    def do_POST(self) -> None:
        """POST /run."""
        length = int(self.headers.get("Content-Length", "-1")) if self._allowed() else -1
        if length < 0:
            return
        if not self.server.places.acquire(blocking=False):
            self._refuse(BUSY, "all workers are busy and the queue is full: ask again")
            return
        try:
            self._answer(200, {"results": self.server.run(json.loads(self.rfile.read(length)))})
        except (DataError, ValueError, AttributeError) as error:
            self._answer(400, {"error": str(error)})
        except SandboxError as error:
            logger.warning("a program could not be run: %s", error)
            self._answer(500, {"error": str(error)})
        finally:
            self.server.places.release()

    def _allowed(self) -> bool:
        """Answers and says no to what must not be read."""
        given = self.headers.get("Authorization", "")
        if self.server.token and not hmac.compare_digest(given.encode(), f"Bearer {self.server.token}".encode()):
            self._refuse(401, f"this server needs the token of {TOKEN_VARIABLE}")
        elif self.path != "/run":
            self._refuse(404, "there are POST /run and GET /health")
        elif not self.headers.get("Content-Length", "").isdigit():
            self._refuse(411, "Content-Length is missing")
        elif int(self.headers["Content-Length"]) > LONGEST_REQUEST:
            self._refuse(413, f"more than {LONGEST_REQUEST} bytes")
        else:
            return True
        return False

    def _refuse(self, status: int, reason: str) -> None:
        self.close_connection = True  # the body is left unread
        self._answer(status, {"error": reason})

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, form: str, *words: Any) -> None:
        """Goes to this module's logger instead of stderr."""
        logger.debug(form, *words)


def serve_code(host: str, port: int, *, tier: str, python: str | None, workers: int) -> int:
    """Serves until Ctrl-C or SIGTERM; the exit status. What runs then is ended with this process.

    Raises:
        ConfigError: as `CodeServer`.
    """
    with CodeServer(host, port, tier=tier, python=python, workers=workers) as server:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        if tier == "process":
            logger.warning("%s", NOT_HELD)
        logger.info("code sandbox: tier %s, %d workers, http://%s:%d", tier, workers, host, server.server_port)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            logger.info("code sandbox ends after %d programs", server.done)
    return 0
