"""Tier `process`: rlimits and a process group, and nothing that holds back a program that means harm."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from shoal.rewards.sandbox.interpreter import Interpreter
from shoal.rewards.sandbox.launch import Launch
from shoal.rewards.sandbox.limits import Limits

NOBODY = 65534
NOT_HELD = (
    "tier process stops accidents, not programs that mean harm: it does not hold back reading and writing what the "
    "user can read and write, the network, signals to the user's other processes, or a process that stays after its "
    "program; use it for programs that you trust (docs/sandbox.md)"
)


class Process:
    """The rlimits, in a session of its own that is killed as a group; an empty environment, no inherited descriptor, a
    private folder that is removed; as root an unprivileged uid. It does not hold back the network, reading what the
    user can read, signals to the user's other processes, or a daemon that leaves the group; and RLIMIT_NPROC counts
    all of the user's processes."""

    name = "process"
    exposed = True

    def launch(self, interpreter: Interpreter, limits: Limits, order: str) -> Launch:
        """See `Tier`."""
        folder = Path(tempfile.mkdtemp(prefix="shoal-sandbox-"))
        user = NOBODY if os.geteuid() == 0 else None
        if user is not None:
            os.chown(folder, user, user)
        return Launch(interpreter.guest(order), folder=folder, user=user)

    def other_processes(self) -> int:
        """All that run as the guest's user now; threads, as the kernel counts."""
        uid = NOBODY if os.geteuid() == 0 else os.getuid()
        count = 0
        for entry in os.scandir("/proc"):
            if entry.name.isdigit():
                try:
                    if entry.stat().st_uid == uid:
                        count += len(os.listdir(f"{entry.path}/task"))
                except OSError:
                    continue  # it ended meanwhile
        return count
