"""Children end whole, whoever is killed first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import monotonic, sleep

import psutil
import pytest

from shoal.child_process import ChildProcess

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a stopped process cannot end with another")
SLEEPER = "import time; print('up', flush=True); time.sleep(600)"
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {SLEEPER!r}])
print(child.pid, flush=True)
child.wait()
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(600)
"""
OWNER = """
import sys, time
from shoal.child_process import ChildProcess
watching = (
    "from shoal.child_process import end_with_owner; end_with_owner(); "
    "import time; print('up', flush=True); time.sleep(600)"
)
child = ChildProcess([sys.executable, "-c", watching], pipes=True)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""


def until(true: Callable[[], bool], seconds: float = 60) -> bool:
    deadline = monotonic() + seconds
    while not true():
        if monotonic() > deadline:
            return False
        sleep(0.01)
    return True


def gone(pid: int) -> bool:
    """One that waits to be reaped has ended."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def says(child: ChildProcess) -> Callable[[], bool]:
    return lambda: bool(child.output().strip())


def test_what_a_child_started_ends_with_it(tmp_path: Path) -> None:
    child = ChildProcess([sys.executable, "-c", PARENT], log=tmp_path / "logs" / "log")
    assert child.wait_until(lambda: "up" in child.output(), 60, lambda _: None)
    grandchild = int(child.output().split()[0])
    assert child.stop()
    assert until(lambda: gone(grandchild))


def test_a_child_that_does_not_end_by_itself_is_killed(tmp_path: Path) -> None:
    child = ChildProcess([sys.executable, "-c", STUBBORN], log=tmp_path / "log")
    assert child.wait_until(says(child), 60, lambda _: None)
    assert not child.stop(seconds=0.1)
    assert child.returncode == -9


def test_waiting_for_a_child_ends_at_its_end_and_at_the_deadline(tmp_path: Path) -> None:
    ended = ChildProcess([sys.executable, "-c", "print('why')"], log=tmp_path / "log")
    assert not ended.wait_until(lambda: False, 60, lambda _: None)
    assert ended.last_line() == "why"
    slow = ChildProcess(["sleep", "600"], log=tmp_path / "log")
    with pytest.raises(TimeoutError):
        slow.wait_until(lambda: False, 0.01, lambda _: None)
    assert slow.output() == "", "the log of an earlier child is not this one's"
    assert slow.kill_group() == -9


@pytest.mark.parametrize("stopped", [False, pytest.param(True, marks=ON_LINUX)])
def test_a_child_ends_with_an_owner_that_is_killed(stopped: bool) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    child = int(owner.stdout.readline())
    assert not gone(child)
    if stopped:
        os.kill(child, signal.SIGSTOP)
        assert until(lambda: psutil.Process(child).status() == psutil.STATUS_STOPPED)
    owner.kill()
    owner.wait(60)
    owner.stdout.close()
    assert until(lambda: gone(child))


def test_a_child_does_not_end_with_the_thread_that_started_it(tmp_path: Path) -> None:
    watching = "from shoal.child_process import end_with_owner; end_with_owner(); print('up', flush=True); input()"
    with ThreadPoolExecutor(1) as thread:
        child = thread.submit(partial(ChildProcess, [sys.executable, "-c", watching], pipes=True)).result()
        assert child.stdout is not None and child.stdin is not None
        assert child.stdout.readline() == b"up\n"
    child.stdin.write(b"end\n")
    child.stdin.close()
    assert child.wait(60) == 0
    child.stdout.close()
