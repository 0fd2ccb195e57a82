"""Nothing is left: no descriptor here, no process there, also where this process is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from shoal.errors import ConfigError, DataError
from shoal.rewards.sandbox.core import Sandbox
from shoal.rewards.sandbox.limits import MIB, Limits
from shoal.rewards.sandbox.outcome import SandboxError, Tests

LONG_RUN = Path(__file__).parent / "long_run.py"


def running(memory_mib: int, program: bytes = b"") -> list[str]:
    """Processes of the program whose command holds this memory limit, which only one test uses."""
    mark = f"'RLIMIT_AS': {memory_mib * MIB}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
            if mark in command and program in command.split(b"\0")[0]:
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def wait_until(condition, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_no_descriptor_and_no_thread_is_left_whatever_happens(bubblewrap, limits):
    def all_ways() -> None:
        bubblewrap.run("def f(): return 1", Tests.from_json(["assert f() == 1"]), limits)
        bubblewrap.run("import os\ndef f(): os._exit(1)", Tests.from_json(["assert f() == 1"] * 2), limits)
        bubblewrap.run("print('x' * 10**7)", Tests.from_json([{"output": "x"}]), limits)
        bubblewrap.run("import time; time.sleep(9)", Tests.from_json([{"output": "x"}]), Limits(seconds=0.5))
        with pytest.raises(SandboxError):
            bubblewrap.run("x = 1", Tests.from_json(["assert ("]), limits)

    all_ways()
    # Sets, because what an earlier test of this process left may end meanwhile.
    before = set(os.listdir("/proc/self/fd")), set(threading.enumerate())
    all_ways()
    assert set(os.listdir("/proc/self/fd")) <= before[0] and set(threading.enumerate()) <= before[1]


def test_no_descriptor_is_left_where_the_sandbox_does_not_start(monkeypatch, tmp_path):
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\n[ $1 = --help ] && echo --disable-userns\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(ConfigError):
            Sandbox("bubblewrap")
    assert set(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize(("tier", "python", "memory"), [("bubblewrap", "", 301), ("process", "/usr/bin/python3", 302)])
def test_a_program_ends_with_the_process_that_runs_it(bubblewrap, tier, python, memory):
    if python and not os.path.exists(python):
        pytest.skip(f"there is no {python}")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), *sys.path]))}
    command = [sys.executable, str(LONG_RUN), tier, python, str(memory)]
    with subprocess.Popen(command, env=environment, start_new_session=True) as process:
        try:
            assert wait_until(lambda: running(memory, b"python"))
            time.sleep(1)  # bubblewrap killed while it sets itself up leaves an idle process of its own
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    assert wait_until(lambda: not running(memory))


@pytest.mark.parametrize("values", [{"seconds": 0}, {"memory_mib": -1}, {"processes": "many"}, {"files": None}])
def test_limits_that_are_none_are_refused(values):
    with pytest.raises(DataError, match="above 0"):
        Limits(**values)
