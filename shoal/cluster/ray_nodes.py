"""The Ray cluster of a run: the one that RAY_ADDRESS names, or one on this machine that ends with the run."""

from __future__ import annotations

import os
import shutil
from logging import WARNING, getLogger
from tempfile import mkdtemp

import ray

logger = getLogger(__name__)

OBJECT_STORE = 200 * 2**20
"""Bytes of the store of a cluster of this machine: batches go through it, weights do not."""


class RayNodes:
    """A connection to a Ray cluster. One that this process has already is used and left as it is."""

    def __init__(self) -> None:
        self.ours = not ray.is_initialized()
        self.folder: str | None = None
        if not self.ours:
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        address = os.environ.get("RAY_ADDRESS")
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=WARNING)
            logger.info("connected to the Ray cluster at %s", address)
            return
        # Not in TMPDIR, which may be long or on a network: a socket's path ends at 107 bytes.
        self.folder = mkdtemp(prefix="shoal_ray_", dir="/tmp")
        ray.init(
            address="local",
            num_cpus=1,  # a worker is started for each; ranks claim none
            include_dashboard=False,
            object_store_memory=OBJECT_STORE,
            log_to_driver=False,
            logging_level=WARNING,
            _node_ip_address="127.0.0.1",
            _temp_dir=self.folder,
        )

    def close(self) -> None:
        """Leaves the cluster; ends it where it was started here."""
        if self.ours:
            ray.shutdown()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
