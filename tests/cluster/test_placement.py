"""Which node holds what, without Ray."""

from __future__ import annotations

import re

import pytest

from shoal import load_config
from shoal.cluster.placement import ClusterNode, Share, place, table
from shoal.config import ShoalConfig
from shoal.errors import ConfigError

DEEPSPEED = ("learner=deepspeed", "engine=vllm_server", "weight_sync=broadcast")


def nodes(*free: float, gpus: float = 4.0) -> list[ClusterNode]:
    return [ClusterNode(f"id{number}", f"10.0.0.{number + 1}", gpus, one) for number, one in enumerate(free)]


def config(*overrides: str) -> ShoalConfig:
    return load_config("story", [*DEEPSPEED, *overrides])


def placed(shares: list[Share]) -> list[tuple[str, tuple[int, ...], tuple[int, ...], int]]:
    return [(one.node.address, one.ranks, one.engines, one.gpus) for one in shares]


def test_a_single_node_has_one_rank_and_three_engines():
    shares = place(config("cluster=debug_single_node"), nodes(4), gpus=True)
    assert placed(shares) == [("10.0.0.1", (0,), (0, 1, 2), 4)]


def test_many_nodes_have_the_same_each_with_numbers_that_go_on():
    shares = place(config("cluster=multi_node"), nodes(4, 4), gpus=True)
    assert placed(shares) == [("10.0.0.1", (0,), (0, 1, 2), 4), ("10.0.0.2", (1,), (3, 4, 5), 4)]


def test_a_colocated_pair_takes_one_gpu():
    shares = place(config("cluster=colocated", "cluster.nodes=1"), nodes(4), gpus=True)
    assert placed(shares) == [("10.0.0.1", (0, 1, 2, 3), (0, 1, 2, 3), 4)]


def test_without_lists_ranks_fill_from_the_first_node_and_engines_from_the_last():
    cfg = config("cluster.kind=ray", "cluster.nodes=3", "learner.num_devices=2", "engine.vllm.servers=4")
    shares = place(cfg, nodes(4, 4, 4), gpus=True)
    assert placed(shares) == [
        ("10.0.0.1", (0,), (0,), 2),
        ("10.0.0.2", (1,), (1,), 2),
        ("10.0.0.3", (), (2, 3), 2),
    ]


def test_of_a_local_cluster_only_the_ranks_are_placed():
    shares = place(config("learner.num_devices=3", "engine.vllm.servers=2"), nodes(4, 4), gpus=True)
    assert placed(shares) == [("10.0.0.1", (0, 1), (), 2), ("10.0.0.2", (2,), (), 1)]


def test_lists_give_nodes_their_own_and_a_node_without_any_is_left_out():
    cfg = config("cluster.kind=ray", "cluster.learners_per_node=[2,0,0]", "cluster.engines_per_node=[0,0,4]")
    shares = place(cfg, nodes(4, 4, 4), gpus=True)
    assert placed(shares) == [("10.0.0.1", (0, 1), (), 2), ("10.0.0.3", (), (0, 1, 2, 3), 4)]


def test_a_node_whose_gpus_are_taken_is_passed_over():
    shares = place(config("cluster=debug_single_node"), nodes(1, 4), gpus=True)
    assert [one.node.address for one in shares] == ["10.0.0.2"]


def test_an_engine_takes_as_many_gpus_as_share_its_layers():
    cfg = config("cluster.kind=ray", "cluster.nodes=1", "engine.vllm.tensor_parallel=2")
    assert place(cfg, nodes(4), gpus=True)[0].gpus == 3


def test_on_cpus_any_node_has_room():
    shares = place(config("cluster=debug_single_node"), nodes(0, gpus=0), gpus=False)
    assert placed(shares) == [("10.0.0.1", (0,), (0, 1, 2), 0)]


def test_a_cluster_that_cannot_hold_the_run_is_refused_with_what_was_asked_and_is_free():
    line = (
        "asked of one node are 4 GPUs (1 rank, 3 engines); free are 10.0.0.1 2 of 4, 10.0.0.2 3 of 4: end what holds "
        "them, or set cluster.learners_per_node and cluster.engines_per_node"
    )
    with pytest.raises(ConfigError, match=re.escape(line)):
        place(config("cluster=debug_single_node"), nodes(2, 3), gpus=True)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["cluster.nodes=3"], "cluster.nodes=3: the Ray cluster has 2 (10.0.0.1, 10.0.0.2): start the others, or set"),
        (["cluster.learners_per_node=[1,1,1]"], "3 nodes in the lists of cluster: the Ray cluster has 2"),
    ],
)
def test_too_few_nodes_are_refused(overrides: list[str], line: str):
    with pytest.raises(ConfigError, match=re.escape(line)):
        place(config("cluster.kind=ray", *overrides), nodes(4, 4), gpus=True)


def test_the_plan_is_a_table_with_a_row_for_each_node():
    rows = list(table(place(config("cluster=multi_node"), nodes(4, 4), gpus=True)))
    assert rows == [
        "node      GPUs  free  takes  holds",
        "10.0.0.1     4     4      4  rank 0, engine 0, engine 1, engine 2",
        "10.0.0.2     4     4      4  rank 1, engine 3, engine 4, engine 5",
    ]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["cluster.nodes=2"], "cluster.nodes=2 places parts on Ray nodes: set cluster.kind=ray, or leave it out"),
        (
            ["cluster.kind=ray", "cluster.nodes=3", "cluster.learners_per_node=[1,1]"],
            "cluster.learners_per_node=[1, 1] has 2 entries, and cluster.nodes=3: give one entry for each node",
        ),
        (
            ["cluster.kind=ray", "cluster.learners_per_node=[1,1]", "cluster.engines_per_node=[1,1,1]"],
            "cluster.learners_per_node=[1, 1] has 2 entries, and the other list has 3",
        ),
        (["cluster.kind=ray", "cluster.engines_per_node=[-1]"], "a node has 0 or more of them"),
        (
            ["cluster.kind=ray", "cluster.learners_per_node=[1,1]", "learner.num_devices=3"],
            "learner.num_devices=3, but the nodes of cluster have 2: leave learner.num_devices out",
        ),
        (
            ["cluster.kind=ray", "cluster.engines_per_node=[2,2]", "engine.vllm.servers=3"],
            "engine.vllm.servers=3, but the nodes of cluster have 4: leave engine.vllm.servers out",
        ),
        (
            ["cluster.kind=ray", "engine.vllm.endpoints=[http://a:1]", "cluster.engines_per_node=[1]"],
            "cluster.engines_per_node=[1]: this run starts no engine of its own",
        ),
        (
            ["cluster.kind=ray", "engine.num_devices=1"],
            "engine.num_devices and engine.devices are GPUs of this machine",
        ),
        (
            ["cluster=colocated", "engine.vllm.tensor_parallel=2"],
            "cluster.share_gpus pairs each rank with an engine on one GPU: set engine.vllm.tensor_parallel=1",
        ),
        (["cluster.kind=ray", "cluster.learners_per_node=[0]"], "cluster.learners_per_node=[0]: at least one node"),
    ],
)
def test_what_no_cluster_could_do_is_refused(overrides: list[str], line: str):
    with pytest.raises(ConfigError, match=re.escape(line)):
        config(*overrides)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["cluster.kind=ray"], "cluster.kind=ray has nothing to place: set learner=deepspeed, engine=vllm_server"),
        (
            ["engine=vllm_server", "weight_sync=broadcast", "cluster.kind=ray", "cluster.learners_per_node=[1]"],
            "cluster.learners_per_node=[1] places ranks, and learner=local has none: set learner=deepspeed",
        ),
        (
            ["engine=vllm_server", "weight_sync=shared", "cluster.kind=ray"],
            "weight_sync=shared needs one machine, and cluster.kind=ray places engines on nodes: set weight_sync",
        ),
    ],
)
def test_a_cluster_of_a_local_learner_is_for_its_engines(overrides: list[str], line: str):
    with pytest.raises(ConfigError, match=re.escape(line)):
        load_config("story", overrides)


def test_engines_are_placed_beside_a_local_learner_too():
    cfg = load_config(
        "story", ["engine=vllm_server", "engine.vllm.servers=3", "weight_sync=broadcast", "cluster.kind=ray"]
    )
    assert [one.engines for one in place(cfg, nodes(4, 4), gpus=True)] == [(0,), (1, 2)]


def test_a_run_that_ray_has_nothing_to_place_for_is_refused_without_its_table():
    cfg = config("cluster.kind=ray")
    cfg.learner.kind = "local"
    cfg.engine.vllm.endpoints = ["http://a:1"]
    with pytest.raises(ConfigError, match="nothing to place: set learner=deepspeed, or an engine that it starts"):
        place(cfg, nodes(4), gpus=True)
