"""`python -m shoal.slurm.ring NAME@ADDRESS ...`: whether the nodes of a job reach each other, and how fast.

Runs once on each node, in the order of the arguments (SLURM_PROCID). They meet at SHOAL_RING, HOST:PORT of the first.
Each connects to the next one, then all sum a tensor by Gloo. A node that does not come, or cannot be reached, is named.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from datetime import timedelta
from threading import Thread
from typing import Any

from shoal.errors import ConfigError

SECONDS = 40.0
CONNECT_SECONDS = 10.0
FLOATS = 4_000_000

logger = logging.getLogger(__name__)


def ring(rank: int, names: list[str], addresses: list[str], store: str, seconds: float = SECONDS) -> float:
    """Gbit/s of a sum over all nodes.

    Raises:
        ConfigError: a node did not come, cannot be reached, or the sum is wrong.
    """
    import torch  # noqa: PLC0415 - a second that most of this room does without
    from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore  # noqa: PLC0415 - the same

    size, host, port = len(names), *store.split(":")
    wait = timedelta(seconds=seconds)
    try:
        meeting = TCPStore(host, int(port), is_master=rank == 0, timeout=wait, wait_for_workers=False)
    except RuntimeError as error:  # DistNetworkError
        raise ConfigError(f"{names[rank]} cannot reach {names[0]} at {store}: {_first_line(error)}") from error
    with socket.create_server((addresses[rank], 0)) as door:
        Thread(target=_answer, args=(door,), daemon=True).start()
        meeting.set(f"door/{rank}", str(door.getsockname()[1]))
        others = [one for one in range(size) if one != rank]
        absent = [names[one] for one in others if not _came(meeting, f"door/{one}", wait)]
        if absent:
            raise ConfigError(f"{', '.join(absent)} did not come to {store} within {seconds:g} s")
        following = (rank + 1) % size
        there = (addresses[following], int(meeting.get(f"door/{following}")))
        try:
            socket.create_connection(there, timeout=CONNECT_SECONDS, source_address=(addresses[rank], 0)).close()
        except OSError as error:
            where = f"{there[0]}:{there[1]}"
            raise ConfigError(f"{names[rank]} cannot reach {names[following]} at {where}: {error}") from error
        device = ProcessGroupGloo.create_device(hostname=addresses[rank])
        options = getattr(ProcessGroupGloo, "_Options")()  # noqa: B009 - the type stubs lack it
        options._devices, options._timeout = [device], wait
        try:
            group: Any = ProcessGroupGloo(PrefixStore("ring", meeting), rank, size, options)
            tensor = torch.ones(FLOATS)
            group.allreduce([tensor]).wait()
            started = time.monotonic()
            group.allreduce([tensor]).wait()
            took = time.monotonic() - started
        except RuntimeError as error:
            raise ConfigError(f"{names[rank]}: Gloo failed: {_first_line(error)}") from error
        if not bool((tensor == size**2).all()):
            raise ConfigError(f"{names[rank]}: Gloo summed {size} nodes wrongly")
        meeting.set(f"done/{rank}", "1")
        if rank == 0:  # the store ends with this process
            for one in others:
                _came(meeting, f"done/{one}", wait)
    return tensor.nbytes * 8 / took / 1e9


def _came(store: Any, key: str, wait: timedelta) -> bool:
    try:
        store.wait([key], wait)
    except RuntimeError:
        return False
    return True


def _answer(door: socket.socket) -> None:
    try:
        while True:
            door.accept()[0].close()
    except OSError:
        return  # closed: the ring is done


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200]


def main() -> int:
    """Status 1 where it did not work."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    pairs = [one.split("@") for one in sys.argv[1:]]
    names, addresses = [name for name, _ in pairs], [address for _, address in pairs]
    rank = int(os.environ["SLURM_PROCID"])
    try:
        speed = ring(rank, names, addresses, os.environ["SHOAL_RING"])
    except ConfigError as error:
        logger.error("bad %s", error)
        return 1
    if rank == 0:
        logger.info("ok %d nodes reach each other; Gloo sums %.1f Gbit/s", len(names), speed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
