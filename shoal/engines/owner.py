"""Processes that Shoal starts do not outlive it, however it ends."""

from __future__ import annotations

import os
import select
import signal
import time
from threading import Thread

OWNER = "SHOAL_OWNER_PID"


def end_with_owner() -> None:
    """Kills this process's group as soon as the process that SHOAL_OWNER_PID names has ended, by SIGKILL or otherwise.

    Called in every process of an inference server: its parts watch the trainer, not each other, because any of them may
    be killed first. Does nothing where the variable is not set.
    """
    owner = os.environ.get(OWNER)
    if owner:
        Thread(target=_watch, args=(int(owner),), name="owner watch", daemon=True).start()
        # A forked process has none of its parent's threads.
        os.register_at_fork(after_in_child=end_with_owner)


def _watch(owner: int) -> None:
    _wait_for_end(owner)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _wait_for_end(pid: int) -> None:
    """Blocks while the process lives. A pidfd costs nothing meanwhile; systems without it are polled once a second."""
    if hasattr(os, "pidfd_open"):
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        ended = select.poll()
        ended.register(descriptor, select.POLLIN)
        ended.poll()
        return
    while True:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(1)
