"""Processes that Shoal starts: each in a process group of its own, ended whole, and none outlives who started it."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from threading import Thread

OWNER = "SHOAL_OWNER_PID"
STOP_SECONDS = 15.0  # for an orderly end, before SIGKILL
SAY_SECONDS = 10.0  # between two lines on one that is not ready
LOOK_SECONDS = 0.25  # between two looks at whether a child is ready
PR_SET_PDEATHSIG = 1

# Linux ends children with the thread that started them (`end_with_parent`): one that lasts as long as the process.
_starting = ThreadPoolExecutor(1, "child processes")


def _new_thread_after_fork() -> None:
    global _starting
    _starting = ThreadPoolExecutor(1, "child processes")


os.register_at_fork(after_in_child=_new_thread_after_fork)


class ChildProcess(subprocess.Popen[bytes]):
    """A process in a session of its own, so that Ctrl-C passes it by and what it starts can be ended with it.

    It learns this process's id: where it calls `end_with_owner`, it also ends when this process is killed; on Linux
    even while it is stopped (SIGSTOP).

    Args:
        command: Program and arguments.
        environment: Variables beside this process's own.
        log: File that its output is added to; its folder is made. None: this process's own output.
        pipes: Whether its input and output are pipes to this process, instead of a log.
        pass_fds: Descriptors that it inherits.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
        pipes: bool = False,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.log = log
        self.log_start = 0
        with ExitStack() as opened:
            output = None
            if log is not None:
                log.parent.mkdir(parents=True, exist_ok=True)
                output = opened.enter_context(log.open("ab"))
                self.log_start = output.tell()
            start = partial(
                super().__init__,
                list(command),
                stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipes else output,
                stderr=None if output is None else subprocess.STDOUT,
                env={**os.environ, **(environment or {}), OWNER: str(os.getpid())},
                pass_fds=pass_fds,
                start_new_session=True,
            )
            _starting.submit(start).result()

    def output(self) -> str:
        """What it has added to its log so far."""
        assert self.log is not None
        with self.log.open("rb") as file:
            file.seek(self.log_start)
            return file.read().decode(errors="replace")

    def last_line(self) -> str:
        """The last line of its log; empty where there is none."""
        return self.output().strip().rpartition("\n")[2]

    def wait_until(self, ready: Callable[[], bool], seconds: float, say: Callable[[float], None]) -> bool:
        """True as soon as `ready` is; False where the process has ended before. `say` gets the seconds so far, now and
        then.

        Raises:
            TimeoutError: neither within `seconds`.
        """
        started = said = time.monotonic()
        while not ready():
            if self.poll() is not None:
                return False
            now = time.monotonic()
            if now - started > seconds:
                raise TimeoutError
            if now - said > SAY_SECONDS:
                said = now
                say(now - started)
            time.sleep(LOOK_SECONDS)
        return True

    def stop(self, seconds: float = STOP_SECONDS) -> bool:
        """Ends it and all that it started: it is asked to, and after `seconds` killed. False where it had to be."""
        self.terminate()
        self.send_signal(signal.SIGCONT)  # one that is stopped would not hear of it
        orderly = True
        try:
            self.wait(seconds)
        except subprocess.TimeoutExpired:
            orderly = False
        # What it started may be left even where it has ended itself.
        self.kill_group()
        return orderly

    def kill_group(self) -> int:
        """Ends it and all that it started at once; gives its status."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        return self.wait(STOP_SECONDS)


def end_with_owner() -> None:
    """Kills this process's group as soon as the process that SHOAL_OWNER_PID names has ended, by SIGKILL or otherwise.

    Called in every process of an inference server: its parts watch the trainer, not each other, because any of them may
    be killed first. Does nothing where the variable is not set.
    """
    owner = os.environ.get(OWNER)
    if owner:
        end_with_parent()
        Thread(target=_watch, args=(int(owner),), name="owner watch", daemon=True).start()
        # A forked process has none of its parent's threads.
        os.register_at_fork(after_in_child=end_with_owner)


def end_with_parent() -> None:
    """Where this process's parent is the one that SHOAL_OWNER_PID names: has the kernel kill this process when that
    ends, even while it is stopped and could not see to it itself. On Linux alone."""
    if sys.platform == "linux" and os.environ.get(OWNER) == str(os.getppid()):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


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
