"""Runs over a Ray cluster of two nodes, each with an address of its own."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from shoal import load_config, train
from shoal.errors import ConfigError
from shoal.rewards.base import Submission

pytest.importorskip("ray", reason="needs Ray")
pytest.importorskip("deepspeed", reason="needs DeepSpeed")
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

import ray  # noqa: E402
from cluster.actor_processes import parent_of, processes_with_log, wait_until_ended, workers_on_nodes  # noqa: E402
from cluster.two_nodes import ADDRESSES, TwoNodes, two_ray_nodes  # noqa: E402

from shoal.cluster.cluster import Cluster, ray_nodes  # noqa: E402
from shoal.cluster.ray_nodes import RayNodes  # noqa: E402
from shoal.monitor.status import read_status  # noqa: E402

SHARDED = ["learner=deepspeed", "learner.zero_stage=3", "weight_sync=broadcast"]
SPREAD = [*SHARDED, "cluster.kind=ray", "cluster.nodes=2", "learner.num_devices=2"]
PLAIN = [
    "evaluation.at_start=false",
    "evaluation.every=0",
    "evaluation.prompts=200",
    "checkpoint.every=0",
    "checkpoint.save_final=false",
    "checkpoint.keep_best=false",
    "monitor.tensorboard=false",
    "monitor.curve=false",
    "runtime.mixed_precision=none",
]


@pytest.fixture(scope="module", autouse=True)
def nodes() -> Iterator[TwoNodes]:
    """Each with 4 GPUs in name: a layout is placed for real, and computed on CPUs."""
    with two_ray_nodes(gpus=4) as found:
        yield found


@pytest.mark.vllm
def test_the_default_task_is_learnt_by_two_ranks_and_two_vllms_on_two_nodes_while_rollouts_run_ahead(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    task = ["source=async", "run.prompts_per_step=16", "run.steps=55", "optimizer.lr=5e-4", "run.root=" + str(tmp_path)]
    cfg = load_config("story", [*SPREAD, "engine=vllm_server", "engine.vllm.servers=2", *task, *PLAIN])
    with caplog.at_level(logging.INFO):
        summary = train(cfg, tmp_path / "run")
    assert summary["accuracy_after"] >= 0.8
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    # Both engines were asked for the learner's log-probs of the probe, or the run would have ended.
    assert len([row for row in rows if row.get("seconds/sync_self_check")]) >= 5
    assert 1 <= max(row.get("staleness/max", 0) for row in rows) <= cfg.source.max_staleness
    for address, rank in zip(ADDRESSES, (0, 1), strict=True):
        assert re.search(rf"{address} .* rank {rank}, engine {rank}", caplog.text)
        assert f"vLLM server on http://{address}:" in caplog.text
    wait_until_ended(tmp_path / "run/logs")


def test_built_in_engines_on_the_nodes_come_back_there_when_they_or_their_actors_are_killed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logs = tmp_path / "run/logs"
    killed: list[int] = []

    def reward(submission: Submission) -> float:
        scored[0] += 1
        for number, count in enumerate((40, 120)):
            if scored[0] == count:
                [server] = processes_with_log(logs / f"engine_{number}.log")
                victim = server if number == 0 else parent_of(server)
                os.kill(victim, signal.SIGKILL)
                killed.append(victim)
        return float(len(submission.text) % 2)

    scored = [0]
    keys = ["engine=torch", "engine.processes=2", "run.prompts_per_step=4", "run.steps=8", f"run.root={tmp_path}"]
    cfg = load_config("story", [*SPREAD, *keys, *PLAIN, "evaluation.at_end=false", "run.preflight=false"])
    with caplog.at_level(logging.INFO):
        summary = train(cfg, tmp_path / "run", rewards={"length": reward})
    assert summary["status"] == "finished"
    assert len(killed) == 2
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 9))
    for address in ADDRESSES:
        assert len(re.findall(rf"engine process on http://{address}:\d+: ready", caplog.text)) == 2
        assert re.search(rf"http://{address}:\d+ died or hangs", caplog.text)
    wait_until_ended(logs)


def test_reward_workers_of_both_nodes_judge_and_those_of_an_actor_that_is_killed_are_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raylets: set[str] = set()
    killed: list[int] = []

    def look(submission: Submission) -> float:
        there = workers_on_nodes()
        raylets.update(there.values())
        if len(raylets) == 2 and not killed:
            killed.append(parent_of(next(iter(there))))
            os.kill(killed[0], signal.SIGKILL)
        return 0.0

    keys = ["engine=torch", "engine.processes=2", "run.prompts_per_step=4", "run.steps=3", f"run.root={tmp_path}"]
    judged = [r"reward.verifiers={look:1,cluster.storm_rewards\:in_a_worker:1}", "cluster.workers_per_node=2"]
    cfg = load_config("story", [*SPREAD, *keys, *judged, *PLAIN, "evaluation.at_end=false", "run.preflight=false"])
    summary = train(cfg, tmp_path / "run", rewards={"look": look})
    assert summary["status"] == "finished"
    assert killed
    assert "the reward workers of node 127.0.0." in caplog.text
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["reward/missing"] for row in rows] == [0.0] * 3
    found = read_status(tmp_path / "run")
    assert found is not None
    assert [node for node, part, _ in found.parts if part == "reward workers"] == list(ADDRESSES)
    wait_until_ended(tmp_path / "run/logs")


def test_gpus_are_reserved_on_the_nodes_of_the_plan_and_no_cpu_is(nodes: TwoNodes) -> None:
    cfg = load_config("story", [*SHARDED, "engine=vllm_server", "cluster=multi_node"])
    with closing(Cluster(cfg)) as cluster:
        assert [one.node.address for one in cluster.shares] == list(ADDRESSES)
        assert [one.free for one in ray_nodes()] == [0.0, 0.0]
        assert ray.available_resources()["CPU"] == ray.cluster_resources()["CPU"]

        @ray.remote
        def where() -> str:
            return str(ray.util.get_node_ip_address())

        ranks = [where.options(**cluster.rank_options(rank)).remote() for rank in range(2)]
        engines = [where.options(**cluster.engine_options(number)).remote() for number in range(6)]
        assert ray.get(ranks, timeout=60) == list(ADDRESSES)
        assert ray.get(engines, timeout=60) == [ADDRESSES[0]] * 3 + [ADDRESSES[1]] * 3
        with pytest.raises(ConfigError, match=rf"free are {ADDRESSES[0]} 0 of 4, {ADDRESSES[1]} 0 of 4"):
            Cluster(cfg)


def test_pairs_that_share_a_gpu_are_on_the_same_one() -> None:
    cfg = load_config("story", [*SHARDED, "engine=vllm_server", "cluster=colocated"])
    with closing(Cluster(cfg)) as cluster:

        @ray.remote
        def gpu() -> tuple[str, list[int]]:
            return str(ray.util.get_node_ip_address()), ray.get_gpu_ids()

        ranks = ray.get([gpu.options(**cluster.rank_options(rank)).remote() for rank in range(8)], timeout=120)
        engines = ray.get([gpu.options(**cluster.engine_options(rank)).remote() for rank in range(8)], timeout=120)
        assert ranks == engines
        assert len({(address, *gpus) for address, gpus in ranks}) == 8


def test_ray_of_this_machine_alone_has_a_loopback_address(nodes: TwoNodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS")
    with closing(RayNodes()):
        assert [one.address.startswith("127.") for one in ray_nodes()] == [True]


def test_an_address_where_no_ray_answers_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.2:1")
    with pytest.raises(ConfigError, match=r"^RAY_ADDRESS=127\.0\.0\.2:1: no Ray cluster answers there .*unset RAY_ADD"):
        RayNodes()
