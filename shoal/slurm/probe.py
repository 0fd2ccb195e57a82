"""`python -m shoal.slurm.probe`: whether a node of a job can be used. Prints its address and a port, or why not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from shoal.errors import ConfigError
from shoal.slurm.address import node_address
from shoal.slurm.ports import job_ports

SHARED = {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "ceph", "fuse.sshfs", "afs", "panfs", "wekafs"}
SMI_SECONDS = 20.0
DISK_GB = 2.0


def troubles() -> Iterator[str]:
    """What is wrong with the node's disks and GPUs, one sentence each."""
    temp = Path(os.environ["SHOAL_TEMP"])
    yield from disk_troubles(temp.parent, local=True)
    yield from disk_troubles(Path(os.environ["SHOAL_RUN_ROOT"]), local=False)
    wanted = int(os.environ.get("SHOAL_GPUS") or 0)
    if wanted:
        yield from gpu_troubles(wanted)


def disk_troubles(folder: Path, local: bool) -> Iterator[str]:
    """Whether the folder can be written, has SHOAL_DISK_GB free, and with `local` is this machine's own."""
    least = float(os.environ.get("SHOAL_DISK_GB") or DISK_GB)
    if not os.access(folder, os.W_OK):
        yield f"{folder} cannot be written"
        return
    free = shutil.disk_usage(folder).free / 1e9
    if free < least:
        yield f"{folder} has {free:.1f} GB free, less than SHOAL_DISK_GB={least:g}"
    kind = file_system(folder)
    if local and kind in SHARED:
        yield f"{folder} is on a network file system ({kind}), which holds no sockets: set SHOAL_TEMP_ROOT"


def file_system(folder: Path) -> str:
    """The kind of file system that a folder is on."""
    where = folder.resolve()
    mounts = [one for one in psutil.disk_partitions(all=True) if where.is_relative_to(one.mountpoint)]
    return max(mounts, key=lambda one: len(one.mountpoint)).fstype if mounts else ""


def gpu_troubles(wanted: int) -> Iterator[str]:
    """Whether nvidia-smi sees as many GPUs as the job has on a node."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=SMI_SECONDS)
    except FileNotFoundError:
        yield f"{wanted} GPUs are asked for and there is no nvidia-smi"
        return
    except subprocess.TimeoutExpired:
        yield f"nvidia-smi did not answer within {SMI_SECONDS:g} s"
        return
    found = listed.stdout.count("GPU ")
    if listed.returncode or found < wanted:
        why = (listed.stderr or listed.stdout).strip().splitlines()
        yield f"{wanted} GPUs are asked for and nvidia-smi sees {found}" + (
            f" ({why[-1]})" if found == 0 and why else ""
        )


def main() -> int:
    """Status 1 where the node is bad."""
    try:
        address = node_address()
        found = list(troubles())
        line = f"ok {address} {job_ports(int(os.environ['SLURM_JOB_ID']), address)}"
    except ConfigError as error:
        found = [str(error)]
    sys.stdout.write(f"bad {'; '.join(found)}\n" if found else line + "\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
