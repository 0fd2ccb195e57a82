"""Reward workers that an actor of a Ray node holds."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from shoal.errors import TrainingError
from shoal.rewards.base import Submission
from shoal.rewards.workers.deadline import Job
from shoal.types import StopReason

pytest.importorskip("ray", reason="needs Ray")
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]

import ray  # noqa: E402
from cluster import storm_rewards  # noqa: E402
from cluster.actor_processes import parent_of, workers_on_nodes  # noqa: E402

from shoal.cluster.placed_workers import PlacedPool  # noqa: E402
from shoal.cluster.ray_nodes import RayNodes  # noqa: E402


class OneNode:
    """What a pool asks of a cluster."""

    def __init__(self) -> None:
        self.addresses = [ray.util.get_node_ip_address()]

    def lost_nodes(self) -> list[str]:
        return []

    def node_options(self, address: str) -> dict[str, Any]:
        return {"num_cpus": 0, "num_gpus": 0, "resources": {f"node:{address}": 0.001}}


@pytest.fixture(scope="module", autouse=True)
def nodes() -> Iterator[None]:
    with closing(RayNodes()):
        yield


def submission(text: str) -> Submission:
    return Submission(text, None, [], StopReason.STOP, 1, {}, {}, {})


def jobs(count: int) -> list[Job]:
    return [("cluster.storm_rewards:in_a_worker", submission(str(number))) for number in range(count)]


def pool_of(path: str, logs: Path) -> PlacedPool:
    return PlacedPool(OneNode(), logs, [path], each=2, timeout=10, memory_gib=0)  # type: ignore[arg-type]


def test_verdicts_come_in_order_and_an_actor_that_is_killed_is_replaced(tmp_path: Path) -> None:
    right = [storm_rewards.in_a_worker(one) for _, one in jobs(40)]
    with closing(pool_of("cluster.storm_rewards:in_a_worker", tmp_path)) as pool:
        tickets = [pool.add(job) for job in jobs(40)]
        assert [verdict.score for verdict in pool.take(tickets)] == right
        holders = {parent_of(worker) for worker in workers_on_nodes()}
        tickets = [pool.add(job) for job in jobs(40)]
        for holder in holders:
            os.kill(holder, signal.SIGKILL)
        assert [verdict.score for verdict in pool.take(tickets)] == right
        assert pool.losses == 1
        [(_, what, state)] = pool.places()
        assert (what, state) == ("reward workers", "2, 0 verdicts to come")


def test_workers_that_do_not_start_are_named_with_their_log(tmp_path: Path) -> None:
    with closing(pool_of("cluster.no_such_rewards:none", tmp_path)) as pool:
        ticket = pool.add(("cluster.no_such_rewards:none", submission("one")))
        with pytest.raises(TrainingError, match=r"a reward worker did not start .*reward_workers_127\.0\.0\.\d\.log"):
            pool.take([ticket])
    [log] = tmp_path.iterdir()
    assert "No module named 'cluster.no_such_rewards'" in log.read_text()
