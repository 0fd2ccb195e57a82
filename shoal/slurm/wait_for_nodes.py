"""`python -m shoal.slurm.wait_for_nodes COUNT SECONDS`: until that many nodes are in the Ray cluster of RAY_ADDRESS.

Prints what the cluster has. Where the time ends first it says who is there, and the status is 1.
"""

from __future__ import annotations

import logging
import os
import sys
import time

LOOK_SECONDS = 0.5

logger = logging.getLogger(__name__)


def wait_for_nodes(count: int, seconds: float) -> bool:
    """Whether `count` nodes came in time."""
    import ray  # noqa: PLC0415 - an optional package

    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level=logging.WARNING)
    deadline = time.monotonic() + seconds
    try:
        while True:
            nodes = [node for node in ray.nodes() if node["Alive"]]
            there = ", ".join(sorted(node["NodeManagerAddress"] for node in nodes))
            if len(nodes) >= count:
                has = ray.cluster_resources()
                came = "1 node has" if count == 1 else f"{count} nodes have"
                logger.info("%s joined (%s): %g CPUs, %g GPUs", came, there, has.get("CPU", 0), has.get("GPU", 0))
                return True
            if time.monotonic() > deadline:
                logger.error("only %d of %d nodes joined within %g s: %s", len(nodes), count, seconds, there)
                return False
            time.sleep(LOOK_SECONDS)
    finally:
        ray.shutdown()


def main() -> None:
    """Status 0 when they have come."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    sys.exit(0 if wait_for_nodes(int(sys.argv[1]), float(sys.argv[2])) else 1)


if __name__ == "__main__":
    main()
