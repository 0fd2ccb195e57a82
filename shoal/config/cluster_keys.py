"""What `cluster` may say beside the other nodes, whatever Ray cluster there is."""

from __future__ import annotations

from shoal.config.device_keys import own_processes
from shoal.config.root import ShoalConfig
from shoal.errors import ConfigError

LISTS = ("learners_per_node", "engines_per_node")


def node_count(c: ShoalConfig) -> int:
    """How many nodes the configuration names; 0: all that there are."""
    lengths = [len(getattr(c.cluster, name)) for name in LISTS]
    return c.cluster.nodes or max((length for length in lengths if length > 1), default=0)


def rank_count(c: ShoalConfig) -> int:
    """Ranks of learner=deepspeed, at least: of a single entry for all nodes that there are, those of one node."""
    counts = c.cluster.learners_per_node
    return sum(counts) * (max(c.cluster.nodes, 1) if len(counts) == 1 else 1) or c.learner.num_devices or 1


def check_cluster_keys(c: ShoalConfig) -> None:
    """Refuses what no cluster could do.

    Raises:
        ConfigError: with the smallest change that works.
    """
    if c.cluster.kind == "local":
        _check_unused(c)
        return
    engines = own_processes(c)[0]
    _check_lists(c)
    _check_places(c, engines)
    _check_counts(c, "learners_per_node", "learner.num_devices", c.learner.num_devices, 0)
    _check_counts(c, "engines_per_node", own_processes(c)[2], engines, 1)
    if engines and (c.engine.num_devices or c.engine.devices):
        raise ConfigError(
            "engine.num_devices and engine.devices are GPUs of this machine, and cluster.kind=ray places engines on "
            "nodes: leave them out"
        )
    if c.cluster.share_gpus and c.engine.vllm.tensor_parallel > 1:
        raise ConfigError(
            "cluster.share_gpus pairs each rank with an engine on one GPU: set engine.vllm.tensor_parallel=1, or "
            "cluster.share_gpus=false"
        )
    if engines and c.weight_sync.kind == "shared":
        raise ConfigError(
            "weight_sync=shared needs one machine, and cluster.kind=ray places engines on nodes: set "
            "weight_sync=broadcast"
        )


def _check_unused(c: ShoalConfig) -> None:
    for name in ("nodes", *LISTS, "workers_per_node", "share_gpus"):
        value = getattr(c.cluster, name)
        if value:
            raise ConfigError(
                f"cluster.{name}={value} places parts on Ray nodes: set cluster.kind=ray, or leave it out"
            )


def _check_lists(c: ShoalConfig) -> None:
    for name in LISTS:
        counts = getattr(c.cluster, name)
        if min(counts, default=0) < 0:
            raise ConfigError(f"cluster.{name}={counts}: a node has 0 or more of them")
        if counts and not any(counts):
            raise ConfigError(f"cluster.{name}={counts}: at least one node needs one")
        if len(counts) > 1 and len(counts) != node_count(c):
            other = f"cluster.nodes={c.cluster.nodes}" if c.cluster.nodes else f"the other list has {node_count(c)}"
            raise ConfigError(
                f"cluster.{name}={counts} has {len(counts)} entries, and {other}: give one entry for "
                "each node, or a single one for all"
            )


def _check_places(c: ShoalConfig, engines: int) -> None:
    cluster = c.cluster
    if c.learner.kind != "deepspeed" and cluster.learners_per_node:
        raise ConfigError(
            f"cluster.learners_per_node={cluster.learners_per_node} places ranks, and learner=local has none: set "
            "learner=deepspeed, or cluster.learners_per_node=[]"
        )
    if not engines and cluster.engines_per_node:
        raise ConfigError(
            f"cluster.engines_per_node={cluster.engines_per_node}: this run starts no engine of its own: set "
            "engine=vllm_server without engine.vllm.endpoints, or cluster.engines_per_node=[]"
        )
    if c.learner.kind != "deepspeed" and not engines:
        raise ConfigError(
            "cluster.kind=ray has nothing to place: set learner=deepspeed, engine=vllm_server or engine.processes, or "
            "cluster=local"
        )


def _check_counts(c: ShoalConfig, name: str, key: str, given: int, default: int) -> None:
    """Refuses a list that has other numbers than the key of the same parts, where that is set."""
    counts = getattr(c.cluster, name)
    nodes = c.cluster.nodes or node_count(c) if len(counts) == 1 else 1
    total = sum(counts) * nodes
    if total and given not in (default, total):
        raise ConfigError(f"{key}={given}, but the nodes of cluster have {total}: leave {key} out")
