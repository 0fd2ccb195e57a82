"""`shoal view` beside a run: a process of its own, which ends with the run."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shoal.child_process import ChildProcess

STOP_SECONDS = 5.0


@contextmanager
def view_beside(folder: Path, say: Callable[[str], None]) -> Iterator[str]:
    """Starts it and says its address, which is taken before, so that nothing is to be waited for. The process reads
    the run folder alone; it is ended with the block, and by itself where this process is killed."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        number = listening.fileno()
        process = ChildProcess(
            [sys.executable, "-m", "shoal.cli", "view", str(folder), "--socket", str(number), "--log-level", "warning"],
            pass_fds=[number],
        )
    say(f"see the run at {address} (and after its end with: shoal view {folder})")
    try:
        yield address
    finally:
        process.stop(STOP_SECONDS)
