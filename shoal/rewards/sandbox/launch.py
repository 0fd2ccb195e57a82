"""How one guest is started: what a tier says, and a process that is started so."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import FileIO
from logging import getLogger
from pathlib import Path
from types import TracebackType
from typing import Protocol

from shoal.rewards.sandbox.interpreter import Interpreter
from shoal.rewards.sandbox.limits import Limits
from shoal.rewards.sandbox.outcome import SandboxError

logger = getLogger(__name__)

START_SECONDS = 30.0
END_SECONDS = 30.0


@dataclass
class Launch:
    """A command and what goes with it: files that it inherits, its working `folder`, which is removed at its end, and
    the uid to start it with (None: ours). A tier with namespaces tells the first process in them through `info`."""

    command: list[str]
    inherited: list[FileIO] = field(default_factory=list)
    info: FileIO | None = None
    folder: Path | None = None
    user: int | None = None


class Tier(Protocol):
    """One kind of isolation. `exposed`: a guest sees the other processes of its user."""

    name: str
    exposed: bool

    def launch(self, interpreter: Interpreter, limits: Limits, order: str) -> Launch:
        """How to start one guest, whose only argument is `order`."""

    def other_processes(self) -> int:
        """How many processes the kernel counts with the guest's against RLIMIT_NPROC."""


def sealed_memory(content: bytes) -> FileIO:
    """A file in memory that holds `content` and that nobody can write to."""
    file = FileIO(os.memfd_create("shoal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "r+")
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]
    file.seek(0)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    return file


def pipe() -> tuple[FileIO, FileIO]:
    """Its end for reading and its end for writing."""
    read, write = os.pipe()
    return FileIO(read, "r"), FileIO(write, "w")


def _why(error: OSError, launch: Launch) -> str:
    if launch.user is None or not isinstance(error, PermissionError):
        return str(error)
    return (
        f"programs of root are run as an unprivileged user, who cannot reach {launch.command[0]}; name a Python that "
        "everyone can run: reward.code.python=/usr/bin/python3, or shoal serve code --python"
    )


class Guest:
    """A started guest; on leaving its context all of it is gone. `passed` descriptors keep their numbers in it; it
    begins when something is written to `go`, which is kept open as long as it may run.

    `output` and `errors` are descriptors of what it writes (`output` only where it is captured), `exited` becomes
    readable at its end, `root` is the process from which all others of it descend, and `first` (of tiers with
    namespaces) a descriptor of that process, with whose end the kernel ends all.

    Raises:
        SandboxError: it does not start.
    """

    def __init__(self, launch: Launch, *, passed: Sequence[int], stdin: FileIO, go: FileIO, capture: bool) -> None:
        self.folder = launch.folder
        self.go = go
        self.first: int | None = None
        self.status: int | None = None
        with ExitStack() as ours:
            for file in (*launch.inherited, *([launch.info] if launch.info else [])):
                ours.enter_context(file)
            try:
                self.process = subprocess.Popen(
                    launch.command,
                    stdin=stdin,
                    stdout=subprocess.PIPE if capture else subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    env={"LC_ALL": "C.UTF-8"},
                    cwd=launch.folder or "/",
                    pass_fds=[*passed, *(file.fileno() for file in launch.inherited)],
                    start_new_session=True,
                    user=launch.user,
                    group=launch.user,
                    extra_groups=None if launch.user is None else [],
                )
            except OSError as error:
                go.close()
                self._remove_folder()
                raise SandboxError(f"the sandbox does not start: {_why(error, launch)}") from error
            for file in launch.inherited:
                file.close()
            assert self.process.stderr is not None
            self.errors = self.process.stderr.fileno()
            self.output = self.process.stdout.fileno() if self.process.stdout is not None else -1
            self.exited = os.pidfd_open(self.process.pid)
            self.root = self.process.pid
            try:
                if launch.info is not None:
                    self.root = self._first_process(launch.info)
                    self.first = os.pidfd_open(self.root)
                # The guest waits for this, so its first process is still there.
                go.write(b".")
            except OSError as error:
                self.close()
                raise SandboxError(f"the sandbox does not start: {error}") from error
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Guest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def end(self) -> int:
        """Kills what is left of it, waits until it is gone, and gives its exit status (128 and more: a signal).

        Raises:
            SandboxError: it is still there after a long time.
        """
        if self.status is not None:
            return self.status
        if self.first is not None:
            # Bubblewrap sees the end of the namespace's first process, and ends by itself.
            _send_kill(self.first)
            if not select.select([self.first], [], [], END_SECONDS)[0]:
                raise SandboxError(f"the processes of sandbox {self.process.pid} do not end")
        else:
            _kill_group(self.process.pid)
        try:
            status = self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise SandboxError(f"process {self.process.pid} of the sandbox does not end") from error
        self.status = status if status >= 0 else 128 - status
        return self.status

    def close(self) -> None:
        """Ends it and gives back all that it took."""
        try:
            self.end()
        finally:
            for pipe in (self.process.stdout, self.process.stderr):
                if pipe is not None:
                    pipe.close()
            self.go.close()
            os.close(self.exited)
            if self.first is not None:
                os.close(self.first)
            self._remove_folder()

    def _first_process(self, info: FileIO) -> int:
        """Waits until the namespaces are made."""
        text = b""
        deadline = time.monotonic() + START_SECONDS
        while b"}" not in text:
            ready = select.select([info], [], [], max(0.0, deadline - time.monotonic()))[0]
            part = (info.read(4096) or b"") if ready else b""
            if not part:
                assert self.process.stderr is not None
                self.process.kill()
                said = self.process.stderr.read(2000).decode(errors="replace").strip() if ready else "no reply in time"
                raise SandboxError(f"the sandbox does not start: {said}")
            text += part
        return int(json.loads(text)["child-pid"])

    def _remove_folder(self) -> None:
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def _send_kill(pidfd: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        logger.debug("the sandbox had ended")


def _kill_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        logger.debug("process group %d had ended", leader)
