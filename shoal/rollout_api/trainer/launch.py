"""The server and the environment of a run, started and ended with it: four terminals in one command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from logging import getLogger
from pathlib import Path
from urllib.parse import urlsplit

from shoal.engines.owner import OWNER
from shoal.engines.vllm.process import free_port
from shoal.errors import ConfigError, RolloutApiError
from shoal.rewards.sandbox.serve import is_loopback
from shoal.run_folder import SAVED

logger = getLogger(__name__)

STOP_SECONDS = 15.0


class Companion:
    """One process in a group of its own; its output goes to a file. It ends when this process does, however that ends.

    `words` are those of the `shoal` command.
    """

    def __init__(self, name: str, words: list[str], log: Path) -> None:
        self.name, self.log = name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "shoal.cli", *words],
                env={**os.environ, OWNER: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        logger.info("started %s (process %d), log %s", name, self.process.pid, log)

    def check(self) -> None:
        """Raises RolloutApiError where it has ended by an error."""
        status = self.process.poll()
        if status:
            last = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            raise RolloutApiError(
                f"{self.name} has ended with status {status}: {' '.join(last)[:400]} (all of it: {self.log})"
            )

    def stop(self) -> None:
        """Ends its process group: asked to first, then by SIGKILL."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(STOP_SECONDS)


class Companions:
    """`shoal serve api` at `url` and `shoal env NAME` with the run's own configuration.

    A port of 0 in `url` is a free one. The server's store and both logs are in the run folder.

    Raises:
        ConfigError: the server would not be on this machine.
    """

    def __init__(self, url: str, environment: str, engine_url: str, folder: Path) -> None:
        address = urlsplit(url)
        host = address.hostname or ""
        if address.scheme != "http" or not is_loopback(host):
            raise ConfigError(
                f"source.url={url}: source.launch starts the server here, at an address such as http://127.0.0.1:8000; "
                "for a server elsewhere leave source.launch out and start the environment by shoal env"
            )
        port = address.port or free_port(host)
        self.url = f"http://{host}:{port}"
        config = (folder / SAVED).absolute()
        serve = ["serve", "api", "--host", host, "--port", str(port), "--store", str(folder / "groups.sqlite")]
        env = ["env", environment, "--config-name", config.stem, "--config-dir", str(config.parent)]
        env += ["--api", self.url, "--engine", engine_url]
        self.running = [Companion("the server of scored groups", serve, folder / "logs" / "api.log")]
        self.running.append(Companion(f"the environment {environment}", env, folder / "logs" / "environment.log"))

    def check(self) -> None:
        """Raises RolloutApiError where one has ended by an error."""
        for companion in self.running:
            companion.check()

    def stop(self) -> None:
        """Ends both, the environment first."""
        for companion in reversed(self.running):
            companion.stop()
