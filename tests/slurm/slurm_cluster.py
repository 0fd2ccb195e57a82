"""A SLURM of two nodes on this machine: its own munged, slurmctld and two slurmd, all ended with it."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from shoal.network import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
SBIN = "/usr/sbin:/sbin"
REPOSITORY = Path(__file__).parents[2]

CONFIGURATION = """
ClusterName=shoal
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
FirstJobId={first}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,default_queue_depth=10
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
MinJobAge=300
KillWait=8
InactiveLimit=0
SlurmctldTimeout=30
SlurmdTimeout=30
JobRequeue=1
PropagateResourceLimits=NONE
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.2 Port={n1} CPUs=4 RealMemory=8000 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.3 Port={n2} CPUs=4 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def missing() -> str:
    """What of SLURM is not installed here; empty where all is."""
    path = f"{os.environ['PATH']}:{SBIN}"
    return ", ".join(name for name in PROGRAMS if shutil.which(name, path=path) is None)


def wait_for(condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    """Until the condition holds. Raises TimeoutError that says what was waited for."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.1)


class SlurmCluster:
    """Starts on entry. `folder` takes everything, and is short: it holds sockets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "PATH": f"{os.environ['PATH']}:{SBIN}", "SLURM_CONF": f"{folder}/slurm.conf"}
        self.daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> SlurmCluster:
        folder = self.folder
        folder.chmod(0o755)
        (folder / "state").mkdir()
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(64))
        key.chmod(0o400)
        (folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                host=socket.gethostname().partition(".")[0],
                user=pwd.getpwuid(os.getuid()).pw_name,
                folder=folder,
                first=10_000 + secrets.randbelow(50_000),  # no other cluster's jobs on this machine have its numbers
                ctld=free_port("127.0.0.1"),
                n1=free_port("127.0.0.1"),
                n2=free_port("127.0.0.1"),
            )
        )
        try:
            own = [f"--{name}={folder}/munge.{end}" for name, end in
                   {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}.items()]  # fmt: skip
            self._start("munged", "--foreground", "--force", f"--key-file={key}", *own)
            wait_for((folder / "munge.socket").exists, "munged's socket")
            self._start("slurmctld", "-D", "-c")
            for node in ("n1", "n2"):
                self._start("slurmd", "-D", "-N", node)
            wait_for(lambda: self.run("sinfo", "-h", "-o", "%D %t").stdout.strip() == "2 idle", "two idle nodes")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.run("scancel", "--full", "--signal=KILL", "--state=RUNNING", "--partition=main")
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def _start(self, program: str, *arguments: str) -> None:
        path = shutil.which(program, path=self.environment["PATH"])
        assert path is not None
        with (self.folder / f"{program}.out").open("ab") as output:
            self.daemons.append(
                subprocess.Popen([path, *arguments], env=self.environment, stdout=output, stderr=output)
            )

    def run(
        self, *command: str, cwd: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A command that knows this SLURM."""
        environment = {**self.environment, **(environment or {})}
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)

    def job(self, number: int) -> dict[str, str]:
        """What `scontrol show job` says."""
        shown = self.run("scontrol", "show", "job", "--oneliner", str(number)).stdout
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)

    def wait(self, number: int, *states: str, seconds: float = 120.0) -> dict[str, str]:
        """The job when it is in one of the states."""
        try:
            wait_for(lambda: self.job(number).get("JobState") in states, f"job {number}: {states}", seconds)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; it is {self.job(number)}") from None
        return self.job(number)


def with_mark(mark: str) -> list[psutil.Process]:
    """Living processes whose environment has SHOAL_MARK beginning so."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("SHOAL_MARK", "").startswith(mark):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def site_file(folder: Path, root: Path, *lines: str) -> Path:
    """A site's settings for this machine: this Python, short waits, a small Ray."""
    file = folder / "site.sh"
    file.write_text(
        "\n".join(
            [
                "# shellcheck shell=bash",
                f"export SHOAL_VENV={sys.prefix}",
                f"export SHOAL_TEMP_ROOT={root}",
                "export SHOAL_WATCH_SECONDS=1 SHOAL_CPUS=1 SHOAL_OBJECT_STORE_MB=100 SHOAL_DISK_GB=0.1",
                *lines,
                "",
            ]
        )
    )
    return file
