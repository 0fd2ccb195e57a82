"""The processes of a run on a cluster of this machine, told apart by the logs that they write to."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

import psutil


def processes_with_log(log: Path) -> list[int]:
    """The processes that write there, without those that they started."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdecimal() and (entry / "fd/1").resolve() == log.resolve():
                found.append(int(entry.name))
    return [one for one in found if parent_of(one) not in found]


def wait_until_ended(logs: Path) -> None:
    """Until no process writes into the folder. Ray ends an actor's process a moment after the actor."""
    deadline = monotonic() + 60
    while left := [log.name for log in logs.iterdir() if processes_with_log(log)]:
        assert monotonic() < deadline, f"processes that write to {left} are left"
        sleep(0.1)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def workers_on_nodes() -> dict[int, str]:
    """Reward workers that an actor has started: their processes, and the raylet of the node of each."""
    found = {}
    for one in psutil.process_iter():
        with suppress(psutil.Error):
            raylet = one.environ().get("RAY_RAYLET_PID")
            if raylet and any("shoal.rewards.workers.worker" in word for word in one.cmdline()):
                found[one.pid] = raylet
    return found
