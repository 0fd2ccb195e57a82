"""The output of an actor's process, and of what it starts, in a file of the run."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def write_to(log: Path) -> None:
    """Has this process write there, behind what is in the file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(file, stream.fileno())
