"""The server and the environment of a run, started and ended with it: four terminals in one command."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from logging import getLogger
from pathlib import Path
from urllib.parse import urlsplit

from shoal.child_process import ChildProcess
from shoal.errors import ConfigError, RolloutApiError
from shoal.network import free_port, is_loopback
from shoal.run_folder import SAVED

logger = getLogger(__name__)

MISTAKEN = 2  # the status of a command whose words or configuration are wrong


class Companion:
    """One process in a group of its own; its output goes to a file. It ends when this process does, however that ends.

    `words` are those of the `shoal` command.
    """

    def __init__(self, name: str, words: list[str], log: Path) -> None:
        self.name, self.words, self.log = name, words, log
        self.process = self._start()

    def _start(self) -> ChildProcess:
        process = ChildProcess([sys.executable, "-m", "shoal.cli", *self.words], log=self.log)
        logger.info("started %s (process %d), log %s", self.name, process.pid, self.log)
        return process

    def failed(self) -> str:
        """How it has ended, where that was by an error; else nothing."""
        status = self.process.poll()
        if not status:
            return ""
        return f"{self.name} has ended with status {status}: {self.process.last_line()[:400]} (all of it: {self.log})"

    @property
    def mistaken(self) -> bool:
        """Whether it has refused what it was told, so that starting it again would not help."""
        return self.process.poll() == MISTAKEN

    def start_again(self) -> None:
        """After an end by an error: what it started goes, and it starts anew."""
        self.process.kill_group()
        self.process = self._start()

    def stop(self) -> None:
        """Ends it and what it started."""
        self.process.stop()


class Companions:
    """`shoal serve api` at `url` and `shoal env NAME` with the run's own configuration.

    A port of 0 in `url` is a free one. The server's store and both logs are in the run folder.

    Raises:
        ConfigError: the server would not be on this machine.
    """

    def __init__(self, url: str, environment: str, engine_url: str, folder: Path, restarts: int) -> None:
        """`restarts` is how often one that died is started again."""
        self.restarts_left = restarts
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
        logs = folder / "logs"
        self.running: list[Companion] = []
        with ExitStack() as undo:
            undo.callback(self.stop)
            self.running.append(Companion("the server of scored groups", serve, logs / "api.log"))
            self.running.append(Companion(f"the environment {environment}", env, logs / "environment.log"))
            undo.pop_all()

    def check(self) -> None:
        """Starts again what has died.

        Raises:
            RolloutApiError: the restarts are used up, or one refuses what it was told.
        """
        for companion in self.running:
            why = companion.failed()
            if not why:
                continue
            if companion.mistaken or self.restarts_left == 0:
                raise RolloutApiError(why)
            self.restarts_left -= 1
            logger.warning("%s: starting it again, %d restarts are left", why, self.restarts_left)
            companion.start_again()

    def stop(self) -> None:
        """Ends both, the environment first, whatever fails on the way."""
        with ExitStack() as ending:
            for companion in self.running:
                ending.callback(companion.stop)
