"""Which node of a Ray cluster holds which ranks and engines. Pure: the nodes are a list."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from shoal.config import ShoalConfig
from shoal.config.cluster_keys import node_count
from shoal.config.device_keys import own_processes
from shoal.errors import ConfigError


@dataclass(frozen=True)
class ClusterNode:
    """A node of Ray's: `gpus` that it has, and `free` ones of them."""

    id: str
    address: str
    gpus: float = 0.0
    free: float = 0.0


@dataclass(frozen=True)
class Share:
    """What one node holds: `ranks` and `engines` by their numbers in the run, and the GPUs that they take."""

    node: ClusterNode
    ranks: tuple[int, ...]
    engines: tuple[int, ...]
    gpus: int

    def holds(self) -> str:
        """In words."""
        words = [f"rank {rank}" for rank in self.ranks] + [f"engine {engine}" for engine in self.engines]
        return ", ".join(words) or "nothing"


def place(c: ShoalConfig, nodes: Sequence[ClusterNode], gpus: bool) -> list[Share]:
    """What each node of the run holds; nodes that hold nothing are left out. Ranks fill nodes from the first on,
    engines from the last. `gpus` says whether each rank takes a GPU and each engine `engine.vllm.tensor_parallel`.

    Raises:
        ConfigError: the cluster has too few nodes, or no node has as many free GPUs; says what was asked and is free.
    """
    wanted = node_count(c)
    if wanted > len(nodes):
        key = f"cluster.nodes={wanted}" if c.cluster.nodes else f"{wanted} nodes in the lists of cluster"
        raise ConfigError(
            f"{key}: the Ray cluster has {len(nodes)} ({', '.join(one.address for one in nodes)}): start the others, "
            f"or set cluster.nodes={len(nodes)}"
        )
    learners, engines = counts_per_node(c, wanted or len(nodes))
    width = own_processes(c)[1]
    left, found, first, last = list(nodes), [], 0, 0
    for ranks, servers in zip(learners, engines, strict=True):
        each = max(ranks, servers) if c.cluster.share_gpus else ranks + servers * width
        takes = each * gpus
        node = next((one for one in left if one.free >= takes), None)
        if node is None:
            raise ConfigError(_does_not_fit(ranks, servers, takes, left))
        left.remove(node)
        if ranks or servers:
            found.append(Share(node, tuple(range(first, first + ranks)), tuple(range(last, last + servers)), takes))
        first, last = first + ranks, last + servers
    if not found:
        raise ConfigError("cluster.kind=ray has nothing to place: set learner=deepspeed, or an engine that it starts")
    return found


def counts_per_node(c: ShoalConfig, nodes: int) -> tuple[list[int], list[int]]:
    """How many ranks and how many engines each of so many nodes has."""
    ranks = (c.learner.num_devices or 1) if c.learner.kind == "deepspeed" else 0
    engines = own_processes(c)[0] if c.cluster.kind == "ray" else 0
    backwards = _spread(engines, nodes)[::-1]
    return _listed(c.cluster.learners_per_node, nodes) or _spread(ranks, nodes), (
        _listed(c.cluster.engines_per_node, nodes) or backwards
    )


def _listed(counts: Sequence[int], nodes: int) -> list[int]:
    return list(counts) * nodes if len(counts) == 1 else list(counts)


def _spread(count: int, nodes: int) -> list[int]:
    return [count // nodes + (number < count % nodes) for number in range(nodes)]


def _does_not_fit(ranks: int, engines: int, takes: int, left: Sequence[ClusterNode]) -> str:
    parts = [f"{ranks} rank{'s' * (ranks != 1)}"] * bool(ranks) + [f"{engines} engine{'s' * (engines != 1)}"] * bool(
        engines
    )
    there = ", ".join(f"{one.address} {one.free:g} of {one.gpus:g}" for one in left) or "no node is left"
    return (
        f"the Ray cluster cannot hold the run: asked of one node are {takes} GPUs ({', '.join(parts)}); free are "
        f"{there}: end what holds them, or set cluster.learners_per_node and cluster.engines_per_node"
    )


def table(shares: Sequence[Share]) -> Iterator[str]:
    """The plan in lines: a row for each node."""
    width = max(len(one.node.address) for one in shares)
    yield f"{'node':<{width}}  GPUs  free  takes  holds"
    for one in shares:
        node = one.node
        yield f"{node.address:<{width}}  {node.gpus:>4g}  {node.free:>4g}  {one.gpus:>5}  {one.holds()}"
