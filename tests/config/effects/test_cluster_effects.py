"""Keys of `cluster`: which node holds what."""

from __future__ import annotations

import pytest

from effects.registry import effect
from shoal.build import workers_of
from shoal.cluster import lost_nodes
from shoal.cluster.lost_nodes import after_loss
from shoal.cluster.placement import ClusterNode, Share, place
from shoal.errors import ConfigError, TrainingError

SHARDED = {"learner.kind": "deepspeed", "engine.kind": "vllm_server", "weight_sync.kind": "broadcast"}
NODES = [ClusterNode(str(number), f"10.0.0.{number}", 8.0, 8.0) for number in (1, 2)]


@pytest.fixture
def shares(settings):
    """What two nodes of 8 GPUs hold under changed keys."""

    def make(changes: dict[str, object]) -> list[Share]:
        return place(settings({**SHARDED, **changes}), NODES, gpus=True)

    return make


@effect("cluster.kind", "cluster.nodes")
def test_engines_are_on_nodes_where_ray_places_them_and_on_as_many_as_are_wanted(shares, settings):
    assert [one.engines for one in shares({"cluster.kind": "local", "learner.num_devices": 2})] == [(), ()]
    keys = {"cluster.kind": "ray", "engine.vllm.servers": 2}
    assert [one.engines for one in shares({**keys, "cluster.nodes": 2})] == [(0,), (1,)]
    assert [one.engines for one in shares({**keys, "cluster.nodes": 1})] == [(0, 1)]


@effect("cluster.learners_per_node", "cluster.engines_per_node")
def test_a_list_says_what_each_node_has(shares, settings):
    for ranks, engines in (([2, 0], [0, 3]), ([1], [2])):
        found = shares({"cluster.kind": "ray", "cluster.learners_per_node": ranks, "cluster.engines_per_node": engines})
        assert [len(one.ranks) for one in found] == (ranks if len(ranks) > 1 else ranks * 2)
        assert [len(one.engines) for one in found] == (engines if len(engines) > 1 else engines * 2)


@effect("cluster.share_gpus")
def test_a_rank_and_an_engine_take_one_gpu_where_they_share_it(shares, settings):
    keys = {"cluster.kind": "ray", "cluster.learners_per_node": [4], "cluster.engines_per_node": [4]}
    assert [one.gpus for one in shares(keys)] == [8, 8]
    assert [one.gpus for one in shares({**keys, "cluster.share_gpus": True})] == [4, 4]


@pytest.fixture
def waited(monkeypatch):
    """Seconds that were waited, without the wait."""
    seconds = [0.0]
    monkeypatch.setattr(lost_nodes, "monotonic", lambda: seconds[0])
    monkeypatch.setattr(lost_nodes, "sleep", lambda more: seconds.append(seconds.pop() + more))
    return seconds


@effect("cluster.lost_node")
def test_a_lost_node_is_waited_for_done_without_or_the_end(shares, settings, waited):
    keys = {"cluster.kind": "ray", "cluster.learners_per_node": [2], "cluster.engines_per_node": [1]}
    there = shares(keys)
    looks = iter([["10.0.0.1"], ["10.0.0.1"], []])
    assert after_loss(settings({"cluster.lost_node": "wait"}).cluster, there, lambda: next(looks)) is there
    assert waited == [lost_nodes.LOOK_SECONDS]
    [left] = after_loss(settings({"cluster.lost_node": "without"}).cluster, there, lambda: ["10.0.0.1"])
    assert (left.node.address, left.ranks, left.engines) == ("10.0.0.2", (0, 1), (1,))
    with pytest.raises(TrainingError, match=r"the Ray node 10\.0\.0\.1 is lost \(cluster\.lost_node=end\)"):
        after_loss(settings({"cluster.lost_node": "end"}).cluster, there, lambda: ["10.0.0.1"])


@effect("cluster.node_timeout")
def test_a_lost_node_is_waited_for_so_long(shares, settings, waited):
    for seconds in (3.0, 7.0):
        waited[:] = [0.0]
        with pytest.raises(TrainingError, match=rf"not come back within {seconds:g} s \(cluster\.node_timeout\)"):
            after_loss(settings({"cluster.node_timeout": seconds}).cluster, shares({}), lambda: ["10.0.0.1"])
        assert seconds < waited[0] <= seconds + 1


@effect("cluster.workers_per_node")
@pytest.mark.ray
def test_reward_workers_are_on_each_node_or_on_this_machine(settings):
    pytest.importorskip("ray", reason="needs Ray")

    class Nodes:
        addresses = ("10.0.0.1", "10.0.0.2")

    keys = {**SHARDED, "cluster.kind": "ray", "reward.workers": 2}
    for each in (3, 0):
        cfg = settings({**keys, "cluster.workers_per_node": each})
        places = workers_of(cfg, Nodes(), None)(["shoal"], cfg.reward).places()
        assert [node for node, *_ in places] == (["10.0.0.1", "10.0.0.2"] if each else [""])
    with pytest.raises(
        ConfigError, match=r"cluster\.workers_per_node=3 places parts on Ray nodes: set cluster\.kind=ray"
    ):
        settings({**SHARDED, "cluster.workers_per_node": 3})
