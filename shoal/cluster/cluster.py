"""The nodes of a run, reserved before anything starts there, and where on them each actor goes."""

from __future__ import annotations

from ipaddress import ip_address
from itertools import accumulate
from logging import getLogger
from threading import RLock
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from shoal.cluster.lost_nodes import after_loss
from shoal.cluster.placement import ClusterNode, Share, place, table
from shoal.cluster.ray_nodes import RayNodes
from shoal.config import ShoalConfig
from shoal.config.device_keys import own_processes
from shoal.errors import ConfigError, TrainingError
from shoal.network import is_loopback

logger = getLogger(__name__)

RESERVE_SECONDS = 60.0
"""Within this Ray must have reserved what it has just said to be free."""
PINNED = 0.001
"""Of the resource that stands for a node by its address: enough to bind a bundle to it."""


class Cluster:
    """A connection to Ray, with one bundle of resources on each node of the run (one for each GPU where ranks and
    engines share them). A bundle takes GPUs and no CPUs, so that a node whose CPUs are taken or limited has room.

    Raises:
        ConfigError: the cluster cannot hold the run.
        TrainingError: what is free was taken meanwhile.
    """

    def __init__(self, cfg: ShoalConfig) -> None:
        self.cfg = cfg
        self.nodes = RayNodes()
        self.group: PlacementGroup | None = None
        self.bundles: dict[str, int] = {}
        """The first bundle of each node, by its address."""
        self.changing = RLock()
        try:
            there = ray_nodes()
            with_gpus = [one for one in there if one.gpus] if on_gpus(cfg) else []
            self.gpus = bool(with_gpus)
            self.shares = place(cfg, with_gpus or there, self.gpus)
            for line in ("placement on the Ray cluster:", *(f"  {row}" for row in table(self.shares))):
                logger.info("%s", line)
            self._refuse_unreachable()
            self._reserve()
        except BaseException:
            self.close()
            raise

    @property
    def world(self) -> int:
        """The number of ranks."""
        return sum(len(one.ranks) for one in self.shares)

    @property
    def engines(self) -> int:
        """The number of engines."""
        return sum(len(one.engines) for one in self.shares)

    def rank_options(self, rank: int) -> dict[str, Any]:
        """What Ray is told of the actor of a rank."""
        return self._options("ranks", rank, 1)

    def engine_options(self, number: int) -> dict[str, Any]:
        """What Ray is told of the actor of an engine."""
        return self._options("engines", number, own_processes(self.cfg)[1])

    @property
    def addresses(self) -> list[str]:
        """The run's nodes."""
        return [one.node.address for one in self.shares]

    def node_options(self, address: str) -> dict[str, Any]:
        """What Ray is told of an actor that takes nothing, on the node of an address."""
        return {"num_cpus": 0, "num_gpus": 0, "resources": {f"node:{address}": PINNED}}

    def rank_node(self, rank: int) -> str:
        """The address of the node of a rank."""
        return next(one.node.address for one in self.shares if rank in one.ranks)

    def engine_node(self, number: int) -> str:
        """The address of the node of an engine."""
        return next(one.node.address for one in self.shares if number in one.engines)

    def lost_nodes(self) -> list[str]:
        """Addresses of the run's nodes that are gone."""
        there = {one["NodeManagerAddress"] for one in ray.nodes() if one["Alive"]}
        return [one.node.address for one in self.shares if one.node.address not in there]

    def mend(self) -> None:
        """Sees to nodes that are gone, as `cluster.lost_node` says: waits for them, or takes them out of the run.

        Raises:
            TrainingError: the run ends for it, or one has not come back within `cluster.node_timeout` seconds.
        """
        with self.changing:
            self.shares = after_loss(self.cfg.cluster, self.shares, self.lost_nodes)

    def has_engine(self, number: int) -> bool:
        """Whether the run still has an engine of this number: its node is not done without."""
        return any(number in one.engines for one in self.shares)

    def close(self) -> None:
        """Gives back what was reserved, and leaves Ray."""
        if self.group is not None and ray.is_initialized():
            remove_placement_group(self.group)
        self.group = None
        self.nodes.close()

    def _options(self, part: str, number: int, gpus: float) -> dict[str, Any]:
        assert self.group is not None
        for share in self.shares:
            mine: tuple[int, ...] = getattr(share, part)
            if number in mine:
                bundle = self.bundles[share.node.address] + (mine.index(number) if self._shared else 0)
                taken = gpus / 2 if self._shared else gpus
                return {
                    "num_cpus": 0,
                    "num_gpus": taken if self.gpus else 0,
                    "scheduling_strategy": PlacementGroupSchedulingStrategy(
                        placement_group=self.group, placement_group_bundle_index=bundle
                    ),
                }
        raise ValueError(f"no node has number {number} of the {part}")

    @property
    def _shared(self) -> bool:
        return self.gpus and self.cfg.cluster.share_gpus

    def _reserve(self) -> None:
        def bundle(share: Share, gpus: int) -> dict[str, float]:
            return {f"node:{share.node.address}": PINNED, **({"GPU": float(gpus)} if gpus else {})}

        if self._shared:
            bundles = [bundle(share, 1) for share in self.shares for _ in range(share.gpus)]
        else:
            bundles = [bundle(share, share.gpus) for share in self.shares]
        before = accumulate((share.gpus if self._shared else 1 for share in self.shares), initial=0)
        self.bundles = {share.node.address: first for share, first in zip(self.shares, before, strict=False)}
        self.group = placement_group(bundles, strategy="PACK" if self._shared else "STRICT_SPREAD")
        if not self.group.wait(RESERVE_SECONDS):
            now = ", ".join(f"{one.address} {one.free:g} of {one.gpus:g}" for one in ray_nodes())
            raise TrainingError(
                f"Ray has not reserved {', '.join(map(str, bundles))} within {RESERVE_SECONDS:g} s, although its nodes "
                f"had them free; free GPUs now: {now}"
            )

    def _refuse_unreachable(self) -> None:
        """Refuses an address of the weight sync that engines on other machines cannot reach."""
        host = self.cfg.weight_sync.host
        outside = [one.node.address for one in self.shares if not is_loopback(one.node.address)]
        mine = ray.util.get_node_ip_address()
        if self.cfg.weight_sync.kind == "broadcast" and is_loopback(host) and [one for one in outside if one != mine]:
            raise ConfigError(
                f"weight_sync.host={host} cannot be reached from the nodes {', '.join(outside)}: set "
                f"weight_sync.host={mine}, this machine's address among them"
            )


def on_gpus(cfg: ShoalConfig) -> bool:
    """Whether ranks and engines take GPUs where nodes have some."""
    return cfg.runtime.target != "cpu" and cfg.runtime.device not in ("cpu", "mps")


def ray_nodes() -> list[ClusterNode]:
    """The nodes that live, the one of this process first, then by address."""
    mine = ray.util.get_node_ip_address()
    free = ray._private.state.available_resources_per_node()
    found = [
        ClusterNode(
            one["NodeID"],
            one["NodeManagerAddress"],
            one["Resources"].get("GPU", 0.0),
            free.get(one["NodeID"], {}).get("GPU", 0.0),
        )
        for one in ray.nodes()
        if one["Alive"]
    ]
    return sorted(found, key=lambda one: (one.address != mine, ip_address(one.address).packed))
