"""Options of placement: which node of a Ray cluster has which ranks and engines."""

from dataclasses import dataclass

from shoal.config.options import option


@dataclass
class ClusterConfig:
    """Where learner ranks and engines run (cluster=local, debug_single_node, multi_node, colocated)."""

    kind: str = option(
        "local",
        "local: engines run on this machine; ranks of learner=deepspeed are spread over the Ray cluster. ray: engines "
        "are placed on the nodes of the Ray cluster too",
        choices=("local", "ray"),
    )
    nodes: int = option(0, "ray: nodes to use. 0: as many as the lists below have entries, or all", least=0, most=4096)
    learners_per_node: list[int] = option(
        list,
        "ray: ranks of learner=deepspeed on each node, such as [4,0]; one entry counts for every node. []: "
        "learner.num_devices ranks, spread over the nodes",
    )
    engines_per_node: list[int] = option(
        list,
        "ray: engine servers (or processes) on each node; one entry counts for every node. []: engine.vllm.servers or "
        "engine.processes, spread over the nodes",
    )
    workers_per_node: int = option(
        0,
        "ray: reward workers, with their code sandboxes, on each node of the run, in place of reward.workers of this "
        "machine. 0: those",
        least=0,
        most=1024,
    )
    lost_node: str = option(
        "wait",
        "What happens if a Ray node of the run is lost. wait: the run waits for it, for cluster.node_timeout seconds. "
        "without: it goes on without the node's ranks and engines. end: it stops",
        choices=("wait", "without", "end"),
    )
    node_timeout: float = option(
        600.0, "lost_node=wait: seconds to wait for a lost node before the run stops", least=1, most=1e6
    )
    share_gpus: bool = option(False, "ray: a rank and an engine of the same node share a GPU")
