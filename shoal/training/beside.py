"""`shoal view` beside a run: a process of its own, which ends with the run."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shoal.engines.owner import OWNER

STOP_SECONDS = 5.0


@contextmanager
def view_beside(folder: Path, say: Callable[[str], None]) -> Iterator[str]:
    """Starts it and says its address, which is taken before, so that nothing is to be waited for. The process reads
    the run folder alone; it is ended with the block, and by itself where this process is killed."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        number = listening.fileno()
        process = subprocess.Popen(
            [sys.executable, "-m", "shoal.cli", "view", str(folder), "--socket", str(number), "--log-level", "warning"],
            env={**os.environ, OWNER: str(os.getpid())},
            pass_fds=[number],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    say(f"see the run at {address} (and after its end with: shoal view {folder})")
    try:
        yield address
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(STOP_SECONDS)
