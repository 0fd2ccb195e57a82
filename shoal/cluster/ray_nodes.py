"""The Ray cluster of a run: the one that RAY_ADDRESS names, or one on this machine that ends with the run."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from logging import WARNING, getLogger
from tempfile import mkdtemp

import ray
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray.exceptions import AuthenticationError

from shoal.errors import ConfigError

logger = getLogger(__name__)

OBJECT_STORE = 200 * 2**20
"""Bytes of the store of a cluster of this machine: batches go through it, weights do not."""

CONNECT_SECONDS = 10.0
"""Until whoever listens at RAY_ADDRESS must have taken a connection."""
LOOPBACK = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"
"""The address of a cluster of this machine. Ray takes 127.0.0.1 for a word, and puts the machine's own address in its
place, which others can reach; the second loopback address, which Linux has, it leaves."""


class RayNodes:
    """A connection to a Ray cluster. One that this process has already is used and left as it is.

    Raises:
        ConfigError: no cluster answers at RAY_ADDRESS, or it does not take this process's token.
    """

    def __init__(self) -> None:
        self.ours = not ray.is_initialized()
        self.folder: str | None = None
        if not self.ours:
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        address = os.environ.get("RAY_ADDRESS")
        if address:
            connect(address)
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
            _node_ip_address=LOOPBACK,
            _temp_dir=self.folder,
        )

    def close(self) -> None:
        """Leaves the cluster; ends it where it was started here."""
        if self.ours:
            ray.shutdown()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def connect(address: str) -> None:
    """Connects to the cluster of an address, with this user's token where there is one. `ray start` asks for it by
    default, while `ray.init` looks for it only where it finds the cluster by itself.

    Raises:
        ConfigError: as `RayNodes`.
    """
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    host, _, port = address.rpartition(":")
    try:
        if port.isdecimal():  # ray.init would try for a minute
            socket.create_connection((host.removeprefix("ray://").strip("[]"), int(port)), CONNECT_SECONDS).close()
        ray.init(address=address, log_to_driver=False, logging_level=WARNING)
    except AuthenticationError as error:
        raise ConfigError(
            f"RAY_ADDRESS={address}: the Ray cluster there does not take this process's token: set RAY_AUTH_TOKEN to "
            "the one that it was started with (ray get-auth-token shows it), and RAY_AUTH_MODE=token"
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        token = " or another token" if "token" in repr(error.__cause__).lower() else ""
        raise ConfigError(
            f"RAY_ADDRESS={address}: no Ray cluster answers there{token} ({why}): start one with ray start --head, or "
            "unset RAY_ADDRESS for one of this machine"
        ) from error
