"""A server as a process of Shoal's: started, waited for, ended, and started again on the same port."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Mapping, Sequence
from logging import getLogger
from pathlib import Path
from signal import Signals
from time import monotonic
from typing import Any, Protocol, Self

import httpx

from shoal.child_process import ChildProcess
from shoal.engines.servers.client import tls
from shoal.errors import EngineError, ServerDied
from shoal.network import free_port

logger = getLogger(__name__)

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


class LaunchedServer(Protocol):
    """A server that Shoal launched, on this machine or on another."""

    log: Path

    @property
    def url(self) -> str: ...

    def launch(self, arguments: Sequence[str]) -> None:
        """Starts it on the same address; returns at once."""

    def wait_until_healthy(self) -> None:
        """Raises EngineError where it ends, or does not answer in time."""

    def ended(self) -> bool:
        """Whether its process is gone."""

    def stop(self) -> None:
        """Ends it and everything it started."""


class Launcher(Protocol):
    """Starts the server of a number with these arguments and variables beside the process's own; with an address or
    on that of the node that it is placed on."""

    def __call__(
        self,
        number: int,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        host: str,
        port: int,
        log: Path,
        start_timeout: float,
        key: str,
    ) -> LaunchedServer: ...


class ServerProcess:
    """One launched server on this machine, in a process group and a log file of its own.

    Args:
        arguments: Of the program `module`, without host and port.
        environment: Variables beside this process's own.
        port: 0 for a free one.
        log: File that the server's output is added to.
        key: Option prefix for error lines, such as `engine.vllm`.
    """

    module: str  # the program
    what: str  # in log and error lines
    start_key: str = ""  # the option of `start_timeout`; else KEY.start_timeout

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
        self.process: ChildProcess | None = None
        self.launch(arguments)

    @classmethod
    def here(cls, number: int, *arguments: Any, **options: Any) -> Self:
        """The `Launcher` of this machine."""
        return cls(*arguments, **options)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def launch(self, arguments: Sequence[str]) -> None:
        """Starts the server; returns at once."""
        command = [sys.executable, "-m", self.module, *arguments]
        self.process = ChildProcess(
            [*command, f"--host={self.host}", f"--port={self.port}"], environment=self.environment, log=self.log
        )
        logger.info("%s on %s: starting (log: %s)", self.what, self.url, self.log)

    def wait_until_healthy(self) -> None:
        """Waits for the server's first answer.

        Raises:
            ServerDied: it was killed while starting.
            EngineError: it ended, or did not answer in time; the line has what the log says.
        """
        process = self.process
        assert process is not None
        started = monotonic()
        try:
            ready = process.wait_until(self.healthy, self.start_timeout, self._say_starting)
        except TimeoutError as error:
            self.stop()
            raise EngineError(
                f"the {self.what} on {self.url} has not answered within {self.start_timeout:.0f} s; read {self.log}, "
                f"or raise {self.start_key or f'{self.key}.start_timeout'}"
            ) from error
        if not ready:
            self.stop()
            if process.returncode < 0:
                raise ServerDied(
                    f"the {self.what} on {self.url} was killed by {Signals(-process.returncode).name} while starting"
                )
            raise EngineError(f"the {self.what} on {self.url} ended while starting: {self._why(process.output())}")
        logger.info("%s on %s: ready after %.1f s", self.what, self.url, monotonic() - started)

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
        if not self.process.stop():
            logger.warning("%s on %s: did not end by itself, so it was killed", self.what, self.url)
        self.process = None

    def _say_starting(self, seconds: float) -> None:
        logger.info("%s on %s: still starting, %.0f s", self.what, self.url, seconds)

    def _why(self, text: str) -> str:
        """What the log says of the server's end, in one line with a remedy."""
        if "Address already in use" in text or "address already in use" in text:
            return f"port {self.port} was taken meanwhile; set {self.key}.port to another one, or 0"
        found = [f"{name}: {line}" for name, line in ERROR_LINE.findall(text) if "SystemExit" not in name]
        said = [line for line in found if "Engine core initialization failed" not in line]
        last = (said or found or [text.strip().rpartition("\n")[2]])[-1]
        return f"{' '.join(last.split())[:300]} (all of it: {self.log})"
