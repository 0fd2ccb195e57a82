"""What all processes of a guest use together, as the kernel tells; rlimits are of each process alone."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")
TICK = os.sysconf("SC_CLK_TCK")
# Fields of /proc/PID/stat after the name in parentheses, which may hold anything: proc(5) counts them from 3.
TIMES = slice(14 - 3, 17 - 3 + 1)
RESIDENT = 24 - 3


@dataclass
class Usage:
    """`resident` bytes (a page of two processes counts twice), CPU `seconds`, and `files` in its /tmp."""

    resident: int = 0
    seconds: float = 0.0
    files: int = 0


def usage_of(root: int, *, private_tmp: bool) -> Usage:
    """Of a process and its descendants. Those that end meanwhile are left out, and
    files are counted only in a /tmp of its own."""
    usage = Usage()
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            for thread in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                    waiting += map(int, file.read().split())
        except (OSError, ValueError):
            continue
        usage.seconds += sum(map(int, fields[TIMES])) / TICK
        usage.resident += int(fields[RESIDENT]) * PAGE
        if private_tmp:
            usage.files = max(usage.files, _files_in_tmp(pid))
    return usage


def _files_in_tmp(pid: int) -> int:
    """0 for a process that still has, or keeps, our own /tmp, and for one that has ended."""
    path = Path(f"/proc/{pid}/root") / "tmp"
    try:
        if os.stat(path).st_dev == os.stat("/tmp").st_dev:
            return 0
        space = os.statvfs(path)
    except OSError:
        return 0
    return space.f_files - space.f_ffree
