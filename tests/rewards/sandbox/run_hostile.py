"""Runs every hostile program in tier bubblewrap as whoever starts this, honest ones beside them, and writes what came
of it as one JSON object to stdout. It needs the standard library and the sandbox only."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from hostile_programs import HOSTILE, PRELUDE

from shoal.rewards.sandbox.core import Sandbox
from shoal.rewards.sandbox.interpreter import GUEST
from shoal.rewards.sandbox.limits import MIB, Limits
from shoal.rewards.sandbox.outcome import Tests

LIMITS = Limits(seconds=2.5, cpu_seconds=1.5, memory_mib=131, processes=8, output_kib=64, files_mib=4, files=500)
HONEST_LIMITS = Limits(seconds=30, cpu_seconds=30)
HONEST = [
    ("print(sum(map(int, input().split())))", [{"input": "1 2 3", "output": "6"}], [True]),
    ("def add(a, b):\n    return a + b", ["assert add(2, 3) == 5", "assert add(2, 3) == 6"], [True, False]),
]
ABSTRACT = f"shoal-hostile-{os.getpid()}"
PASSWORD = "open-sesame-7261"


def main() -> None:
    os.environ["SHOAL_SECRET"] = PASSWORD
    sandbox = Sandbox("bubblewrap")
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        # Where the sandbox makes its own folders: in /tmp, those of other tests come and go.
        tempfile.tempdir = folder
        secret = Path(folder) / "secret"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        abstract = socket.socket(socket.AF_UNIX)
        abstract.bind(f"\0{ABSTRACT}")
        abstract.listen()
        words = {
            "{port}": str(server.getsockname()[1]),
            "{abstract}": ABSTRACT,
            "{secret}": str(secret),
            "{repository}": str(Path(__file__).parents[3]),
            "{guest}": str(GUEST),
            "{password}": PASSWORD,
            "{pid}": str(os.getpid()),
        }
        before = left_behind()
        stop, honest = threading.Event(), []
        beside = threading.Thread(target=run_honest, args=(sandbox, stop, honest))
        beside.start()
        try:
            with ThreadPoolExecutor(3) as pool:
                jobs = {name: pool.submit(run, sandbox, program, words) for name, (_, program) in HOSTILE.items()}
            results = {name: job.result() for name, job in jobs.items()}
        finally:
            stop.set()
            beside.join()
        after = left_behind()
    report = {"uid": os.getuid(), "results": results, "honest": honest, "before": before, "after": after}
    json.dump(report, sys.stdout)


def run(sandbox: Sandbox, program: str, words: dict[str, str]) -> dict[str, object]:
    """How one hostile program ended, and the processes that are left of it."""
    for word, value in words.items():
        program = program.replace(word, value)
    started = time.monotonic()
    (result,) = sandbox.run(PRELUDE + program, Tests.from_json([{"input": "a line", "output": "contained"}]), LIMITS)
    return {"status": result.status, "detail": result.detail, "seconds": time.monotonic() - started}


def run_honest(sandbox: Sandbox, stop: threading.Event, honest: list[bool]) -> None:
    """Honest programs, over and over; whether each came out as it should."""
    while not stop.is_set():
        for program, tests, wanted in HONEST:
            results = sandbox.run(program, Tests.from_json(tests), HONEST_LIMITS)
            honest.append([result.passed for result in results] == wanted)


def left_behind() -> dict[str, list[str]]:
    """What a program could leave: processes with our limits, mounts, files of the names that the programs give."""
    processes = []
    mark = f"'RLIMIT_AS': {LIMITS.memory_mib * MIB}".encode()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z" and mark in command:
            processes.append(command.replace(b"\0", b" ").decode(errors="replace")[-200:])
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    names = re.compile(r"x|d|disk|\d+|core.*")
    files = [
        f"{folder}/{name}"
        for folder in ("/tmp", "/dev/shm", os.getcwd())
        for name in os.listdir(folder)
        if names.fullmatch(name)
    ]
    files += [f"{tempfile.gettempdir()}/{name}" for name in os.listdir(tempfile.gettempdir()) if name != "secret"]
    return {"processes": sorted(processes), "mounts": sorted(mounts), "files": sorted(files)}


if __name__ == "__main__":
    main()
