"""Ports of a job on a node, from the job's number, so that two jobs on one node do not meet."""

from __future__ import annotations

import socket

from shoal.errors import ConfigError

FIRST, LAST = 20_000, 32_700  # below those that the kernel gives out
BLOCK = 20
NAMES = ("port", "node-manager-port", "object-manager-port", "ray-client-server-port", "dashboard-agent-listen-port",
         "dashboard-agent-grpc-port", "runtime-env-agent-port", "metrics-export-port")  # fmt: skip
RING = len(NAMES)
"""Where in its block the probe of the network meets."""


def job_ports(job: int, address: str) -> int:
    """The first of BLOCK ports that nothing listens on now: the job's own block, or the next free one.

    Raises:
        ConfigError: every block has a port that is taken.
    """
    blocks = (LAST - FIRST) // BLOCK
    for attempt in range(blocks):
        first = FIRST + (job + attempt) % blocks * BLOCK
        if all(_free(address, port) for port in range(first, first + BLOCK)):
            return first
    raise ConfigError(f"{address}: no {BLOCK} free ports in a row between {FIRST} and {LAST}")


def _free(address: str, port: int) -> bool:
    with socket.socket() as door:
        try:
            door.bind((address, port))
        except OSError:
            return False
        return True
