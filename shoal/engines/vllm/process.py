"""A vLLM server as a process of Shoal's: started, waited for, ended, and started again on the same port."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from logging import getLogger
from pathlib import Path
from time import monotonic, sleep

import httpx

from shoal.engines.owner import OWNER
from shoal.engines.vllm.client import tls
from shoal.errors import EngineError
from shoal.network import free_port

logger = getLogger(__name__)

STOP_SECONDS = 15.0  # for an orderly end, before SIGKILL
NEWS_SECONDS = 10.0  # between lines on a server that is starting
ERROR_LINE = re.compile(r"\b(\w+(?:Error|Exception)): (.+)")


def refuse_taken_port(host: str, port: int, key: str) -> None:
    """Raises EngineError where something listens on the port already. `key` is the option that names the port."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except OSError as error:
            raise EngineError(
                f"{key}={port}: port {port} on {host} is taken ({error.strerror}); end what listens there, or set "
                f"{key}=0 for a free port"
            ) from error


class ServerProcess:
    """One launched server, in a process group and a log file of its own.

    Args:
        arguments: Of `shoal.engines.vllm.inside.app`, without host and port.
        environment: Variables beside this process's own.
        port: 0 for a free one.
        log: File that the server's output is added to.
        key: Option prefix for error lines, such as `engine.vllm`.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        host: str,
        port: int,
        log: Path,
        start_timeout: float,
        key: str,
    ) -> None:
        if port:
            refuse_taken_port(host, port, f"{key}.port")
        self.environment = environment
        self.host = host
        self.port = port or free_port(host)
        self.log = log
        self.start_timeout = start_timeout
        self.key = key
        self.process: subprocess.Popen[bytes] | None = None
        self.launch(arguments)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def launch(self, arguments: Sequence[str]) -> None:
        """Starts the server; returns at once."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "shoal.engines.vllm.inside.app", *arguments]
        with self.log.open("ab") as output:
            self.log_start = output.tell()
            self.process = subprocess.Popen(
                [*command, f"--host={self.host}", f"--port={self.port}"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **self.environment, OWNER: str(os.getpid())},
            )
        logger.info("vLLM server on %s: starting (log: %s)", self.url, self.log)

    def wait_until_healthy(self) -> None:
        """Raises EngineError where the server ends, or does not answer in time; its line has what the log says."""
        assert self.process is not None
        started = monotonic()
        news = started + NEWS_SECONDS
        while not self.healthy():
            if self.process.poll() is not None:
                self.stop()
                raise EngineError(f"the vLLM server on {self.url} ended while starting: {self._why()}")
            now = monotonic()
            if now - started > self.start_timeout:
                self.stop()
                raise EngineError(
                    f"the vLLM server on {self.url} has not answered within {self.start_timeout:.0f} s; read "
                    f"{self.log}, or raise {self.key}.start_timeout"
                )
            if now > news:
                logger.info("vLLM server on %s: still starting, %.0f s", self.url, now - started)
                news = now + NEWS_SECONDS
            sleep(0.25)
        logger.info("vLLM server on %s: ready after %.1f s", self.url, monotonic() - started)

    def healthy(self, timeout: float = 2.0) -> bool:
        """Whether the server answers and its engine lives."""
        try:
            return httpx.get(f"{self.url}/health", timeout=timeout, verify=tls()).status_code == 200
        except httpx.HTTPError:
            return False

    def ended(self) -> bool:
        """Whether the server's own process is gone."""
        return self.process is None or self.process.poll() is not None

    def stop(self) -> None:
        """Ends the server and everything it started."""
        if self.process is None:
            return
        group = self.process.pid
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                logger.warning("vLLM server on %s: does not end by itself, so it is killed", self.url)
        # What the server started may be left even where it has ended itself.
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        self.process.wait(STOP_SECONDS)
        self.process = None

    def _why(self) -> str:
        """What the log says of the server's end, in one line with a remedy."""
        with self.log.open("rb") as file:
            file.seek(self.log_start)
            text = file.read().decode(errors="replace")
        if "Address already in use" in text or "address already in use" in text:
            return f"port {self.port} was taken meanwhile; set {self.key}.port to another one, or 0"
        found = [f"{name}: {line}" for name, line in ERROR_LINE.findall(text) if "SystemExit" not in name]
        said = [line for line in found if "Engine core initialization failed" not in line]
        last = (said or found or [text.strip().rpartition("\n")[2]])[-1]
        return f"{' '.join(last.split())[:300]} (all of it: {self.log})"
