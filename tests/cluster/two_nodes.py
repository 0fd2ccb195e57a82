"""A Ray cluster of two nodes on this machine, each with an address of its own, as `ray start` makes them."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import mkdtemp
from time import monotonic, sleep

ADDRESSES = ("127.0.0.2", "127.0.0.3")
START_SECONDS = 120.0
ATTEMPTS = 3
RAY = str(Path(sys.executable).with_name("ray"))
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "5",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_initial_delay_ms": "500",
}


class TwoNodes:
    """`address` is the head's; `kill` ends a node as a power cut would."""

    def __init__(self, folder: str, gpus: int = 0) -> None:
        self.address = f"{ADDRESSES[0]}:{free_port(ADDRESSES[0])}"
        self.folder = folder
        self.gpus = gpus
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.commands: list[list[str]] = []

    def environment(self) -> dict[str, str]:
        """What a driver needs in its environment."""
        return {**ENVIRONMENT, "RAY_ADDRESS": self.address}

    def start(self) -> None:
        """Starts both nodes; returns when they are up."""
        make_token()
        port = self.address.rpartition(":")[2]
        first = free_ports(2 * 60)
        for number, own in enumerate(ADDRESSES):
            where = (
                ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={self.folder}"]
                if number == 0
                else [f"--address={self.address}"]
            )
            ports = [f"--min-worker-port={first + 60 * number}", f"--max-worker-port={first + 60 * number + 59}"]
            command = [RAY, "start", "--block", f"--node-ip-address={own}", *where, *ports]
            command += ["--num-cpus=1", f"--num-gpus={self.gpus}", "--object-store-memory=150000000"]
            self.commands.append(command)
            self.nodes.append(self._start(number))

    def start_again(self, number: int) -> None:
        """Starts a node that was killed, at its address; returns when it is up."""
        self.nodes[number] = self._start(number)

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        log = Path(self.folder, f"node_{number}.log")
        # A node gives itself 30 s to start, which is not enough on a machine that is very busy.
        attempts = (self._started(self.commands[number], log) for _ in range(ATTEMPTS))
        node = next(filter(None, attempts), None)
        if node is None:
            raise RuntimeError(f"the Ray node {ADDRESSES[number]} has not started: {log.read_text()[-2000:]}")
        return node

    def _started(self, command: list[str], log: Path) -> subprocess.Popen[bytes] | None:
        """The node, when it is up; None where it has ended instead."""
        environment = {**os.environ, **self.environment(), "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "token"}
        environment.pop("RAY_ADDRESS")
        with log.open("wb") as file:
            node = subprocess.Popen(
                command,
                env=environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        deadline = monotonic() + START_SECONDS
        while b"Ray runtime started" not in log.read_bytes():
            if monotonic() > deadline or node.poll() is not None:
                kill_session(node)
                return None
            sleep(0.1)
        return node

    def kill(self, number: int) -> None:
        """Ends a node and everything on it at once."""
        kill_session(self.nodes[number])

    def close(self) -> None:
        for node in reversed(self.nodes):
            kill_session(node)


def end_with_parent() -> None:
    """Has this process told to end, with what it started, when its parent is gone."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def make_token() -> None:
    """Gives this user a token of Ray's, where there is none yet."""
    if "RAY_AUTH_TOKEN" not in os.environ and not (Path.home() / ".ray/auth_token").exists():
        subprocess.run([RAY, "get-auth-token", "--generate"], check=True, capture_output=True, timeout=START_SECONDS)


def kill_session(leader: subprocess.Popen[bytes]) -> None:
    """Kills every process of a session, whose id is its leader's."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and session_of(entry) == leader.pid:
            with suppress_gone():
                os.kill(int(entry.name), signal.SIGKILL)
    leader.wait(30)


@contextmanager
def suppress_gone() -> Iterator[None]:
    try:
        yield
    except ProcessLookupError:
        return


def session_of(entry: Path) -> int | None:
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[3])
    except (FileNotFoundError, ProcessLookupError):
        return None


def free_port(host: str) -> int:
    with socket.socket() as door:
        door.bind((host, 0))
        return int(door.getsockname()[1])


def free_ports(count: int) -> int:
    """The first of so many ports in a row that nothing listens on just now."""
    for first in range(20000 + os.getpid() % 97 * 100, 60000, count):
        with ExitStack() as doors:
            try:
                for port in range(first, first + count):
                    doors.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise RuntimeError("no ports are free")


@contextmanager
def two_ray_nodes(gpus: int = 0) -> Iterator[TwoNodes]:
    """Both nodes, and this process's environment so that RAY_ADDRESS names them."""
    folder = mkdtemp(prefix="sn_", dir="/tmp")  # short: a socket's path ends at 107 bytes
    nodes = TwoNodes(folder, gpus)
    before = dict(os.environ)
    try:
        nodes.start()
        os.environ.update(nodes.environment())
        yield nodes
    finally:
        restore(before)
        nodes.close()
        shutil.rmtree(folder, ignore_errors=True)


def restore(before: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(before)
