"""The process of one rank of a learner, as Ray starts it."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import ray

from shoal.cluster.outcome import outcome
from shoal.cluster.own_log import write_to
from shoal.config import ShoalConfig


class RankActor:
    """Holds a rank, and does with it what it is told. Its output goes to `log`."""

    def __init__(self, log: str) -> None:
        write_to(Path(log))
        self.rank: Any = None

    def address(self) -> str:
        """HOST:PORT of this node at which the ranks can meet."""
        host = ray.util.get_node_ip_address()
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as door:
            door.bind((host, 0))
            return f"{host}:{door.getsockname()[1]}"

    def open(self, cfg: ShoalConfig, address: str, rank: int, world: int, total_steps: int) -> Any:
        """Makes the rank; gives what it computes with. What this and `call` give is an `outcome`."""
        host, _, port = address.partition(":")
        os.environ.update(RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE=str(world), MASTER_ADDR=host, MASTER_PORT=port)
        own = ray.util.get_node_ip_address()
        if own.startswith("127."):
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"

        def make() -> Any:
            import torch  # noqa: PLC0415 - loaded in the rank's process

            if not torch.cuda.is_available():
                os.environ.setdefault("DS_ACCELERATOR", "cpu")
            from shoal.learners.deepspeed.rank import open_rank  # noqa: PLC0415 - imports DeepSpeed

            self.rank = open_rank(cfg, address, rank, world, total_steps)
            return self.rank.runtime

        return outcome(make)

    def here(self) -> bool:
        """Answers, where the rank lives and has nothing to do."""
        return True

    def call(self, method: str, *arguments: Any) -> Any:
        """What the rank's method gives."""
        return outcome(getattr(self.rank, method), *arguments)
