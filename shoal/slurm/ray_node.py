"""`python -m shoal.slurm.ray_node head|worker`: becomes `ray start --block` on this node of a job.

What it goes by is in the environment that the scripts set: SHOAL_ADDRESS (this node's), SHOAL_RAY_HEAD (HOST:PORT of
the head), SHOAL_TEMP (a short folder of this node), SHOAL_CPUS, SHOAL_GPUS, SHOAL_OBJECT_STORE_MB.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from shoal.errors import ConfigError
from shoal.slurm.environment import kept
from shoal.slurm.ports import NAMES, job_ports

LONGEST = 40
"""Characters of SHOAL_TEMP: Ray adds 65 to it for its sockets, whose paths end at 107."""
CPUS = 32
"""Most CPUs that Ray is told of: it starts a worker for each, and a GH200 node reports 288."""
STORE_MB = 1000

logger = logging.getLogger(__name__)


def arguments(role: str, environment: Mapping[str, str]) -> list[str]:
    """The command for `head` or `worker`.

    Raises:
        ConfigError: SHOAL_TEMP is too long, or there are no free ports.
    """
    address, temp = environment["SHOAL_ADDRESS"], environment["SHOAL_TEMP"]
    if len(temp) > LONGEST:
        raise ConfigError(f"SHOAL_TEMP={temp}: at most {LONGEST} characters, because a socket's path ends at 107")
    cpus = environment.get("SHOAL_CPUS") or str(min(int(environment.get("SLURM_CPUS_ON_NODE", "1")), CPUS))
    head = environment["SHOAL_RAY_HEAD"]
    first = int(head.rpartition(":")[2]) if role == "head" else job_ports(int(environment["SLURM_JOB_ID"]), address)
    ports = {name: first + place for place, name in enumerate(NAMES)}
    only_head = ("port", "ray-client-server-port")
    return [
        "ray", "start", "--block", *(["--head"] if role == "head" else [f"--address={head}"]),
        f"--node-ip-address={address}",
        f"--temp-dir={temp}",
        f"--num-cpus={cpus}",
        f"--num-gpus={environment.get('SHOAL_GPUS') or 0}",
        f"--object-store-memory={int(environment.get('SHOAL_OBJECT_STORE_MB') or STORE_MB) * 2**20}",
        *(["--include-dashboard=false"] if role == "head" else []),
        "--disable-usage-stats",
        *(f"--{name}={port}" for name, port in ports.items() if role == "head" or name not in only_head),
    ]  # fmt: skip


def main() -> None:
    """Becomes `ray start`; LD_PRELOAD and what SLURM sets stay behind."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    try:
        command = arguments(sys.argv[1], os.environ)
    except ConfigError as error:
        logger.error("%s", error)
        sys.exit(2)
    logger.info("%s", " ".join(command))
    program = Path(sys.executable).with_name("ray")
    os.execve(program, command, {**kept(os.environ), "RAY_USAGE_STATS_ENABLED": "0"})


if __name__ == "__main__":
    main()
