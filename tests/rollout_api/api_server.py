"""Starting `shoal serve api` as a process, and groups to send to it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

START_SECONDS = 120


class ApiServer:
    """A running server. `url` ends without a slash."""

    def __init__(self, folder: Path, *options: str, env: dict[str, str] | None = None, port: int = 0) -> None:
        command = [sys.executable, "-m", "shoal.cli", "serve", "api", "--port", str(port)]
        command += ["--store", str(folder / "groups.sqlite"), *options]
        self.process = subprocess.Popen(
            command, env={**os.environ, **(env or {})}, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self.lines: list[str] = []
        ready = threading.Event()
        self.reading = threading.Thread(target=self._read, args=(ready,), daemon=True)
        self.reading.start()
        if not ready.wait(START_SECONDS):
            self.kill()
            raise TimeoutError("the server did not start:\n" + "".join(self.lines))
        found = re.search(r"http://\S+(?=,)", "".join(self.lines))
        if found is None:
            raise RuntimeError("the server ended:\n" + "".join(self.lines))
        self.url = found[0]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def _read(self, ready: threading.Event) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if "http://" in line:
                ready.set()
        ready.set()

    def kill(self) -> None:
        """SIGKILL, to all processes of the server."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.reading.join(10)

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        self.reading.join(10)
        return status


@contextmanager
def serving(folder: Path, *options: str, env: dict[str, str] | None = None, port: int = 0) -> Iterator[ApiServer]:
    """A server until the block ends."""
    server = ApiServer(folder, *options, env=env, port=port)
    try:
        yield server
    finally:
        server.kill()


def registration(batch_size: int = 8, **values: Any) -> dict[str, Any]:
    """A trainer's registration."""
    return {
        "wandb_group": "group",
        "wandb_project": "project",
        "batch_size": batch_size,
        "max_token_len": 512,
        "checkpoint_dir": "checkpoints",
        "save_checkpoint_interval": 10,
        "starting_step": 0,
        "num_steps": 100,
        **values,
    }


def environment(name: str = "sums", **values: Any) -> dict[str, Any]:
    """An environment's registration."""
    return {"max_token_length": 512, "desired_name": name, "weight": 1.0, "group_size": 4, **values}


def group(size: int = 4, first: int = 1, **values: Any) -> dict[str, Any]:
    """A group of `size` sequences of three tokens; `first` is the first token of each."""
    return {
        "tokens": [[first, 2, 3]] * size,
        "masks": [[-100, 2, 3]] * size,
        "scores": [float(index) for index in range(size)],
        **values,
    }
