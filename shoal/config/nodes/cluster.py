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
    share_gpus: bool = option(False, "ray: a rank and an engine of the same node share a GPU")
