"""SIGKILL, at random moments, of the parts of an asynchronous run over two Ray nodes: engines, their actors, ranks,
reward workers, a peer in the middle of a broadcast, and a whole node.

SHOAL_STORM=4 runs it, SHOAL_STORM=12 makes it a long one of 60 steps, SHOAL_STORM_SEED another one;
--log-cli-level=WARNING shows what happens.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import median
from threading import Event, Thread, Timer
from time import monotonic, sleep
from typing import Any

import psutil
import pytest

from shoal import load_config, train
from shoal.child_process import OWNER
from shoal.monitor.rows import read_rows
from shoal.training.recording import GroupRecording
from shoal.weight_sync.broadcast import BroadcastSync

pytest.importorskip("ray", reason="needs Ray")
pytest.importorskip("deepspeed", reason="needs DeepSpeed")

from cluster.actor_processes import parent_of, processes_with_log, wait_until_ended
from cluster.two_nodes import TwoNodes, two_ray_nodes

KILLS = int(os.environ.get("SHOAL_STORM", "4"))
SEED = int(os.environ.get("SHOAL_STORM_SEED", "1"))
pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(600 + 180 * KILLS),
    # A minute for each kill; a node that dies while its engine is idle may keep the run from going on.
    pytest.mark.skipif("SHOAL_STORM" not in os.environ, reason="takes minutes: SHOAL_STORM=4 runs it"),
]

STEPS = 5 * KILLS
PROMPTS = 2
KINDS = ("rank", "node", "peer", "actor", "engine", "worker")
OVERRIDES = (
    "learner=deepspeed",
    "learner.zero_stage=3",
    "learner.num_devices=2",
    "learner.restarts=1000",
    "learner.timeout=300",
    "weight_sync=broadcast",
    "weight_sync.timeout=60",
    "cluster.kind=ray",
    "cluster.nodes=2",
    "cluster.node_timeout=300",
    "source=async",
    "source.max_staleness=3",
    "source.lead=2",
    "engine=torch",
    "engine.processes=2",
    "engine.timeout=60",
    "engine.restarts=1000",
    "runtime.target=cpu",
    "runtime.mixed_precision=none",
    "runtime.threads=1",
    r"reward.verifiers={cluster.storm_rewards\:in_a_worker:1}",
    "reward.workers=2",
    "reward.timeout=10",
    "reward.max_missing=1",
    "data.shuffle=false",
    "sampling.max_new_tokens=12",
    "model.train=full",
    "optimizer.lr=1e-4",
    f"run.prompts_per_step={PROMPTS}",
    "run.group_size=4",
    f"run.steps={STEPS}",
    "run.record_groups=true",
    "run.preflight=false",
    "checkpoint.every=3",
    "checkpoint.save_final=false",
    "checkpoint.keep_best=false",
    "evaluation.at_start=false",
    "evaluation.at_end=false",
    "evaluation.every=0",
    "monitor.progress=off",
    "monitor.samples_every=0",
    "monitor.tensorboard=false",
    "monitor.curve=false",
)
logger = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def nodes() -> Iterator[TwoNodes]:
    with two_ray_nodes() as found:
        yield found


class ClusterStorm:
    """Strikes at a run in this process, from a thread of its own, when the run has come to the steps of the plan."""

    def __init__(self, folder: Path, nodes: TwoNodes, seed: int, kills: int) -> None:
        self.folder = folder
        self.nodes = nodes
        self.random = Random(seed)
        kinds = [KINDS[number % len(KINDS)] for number in range(kills)]
        self.random.shuffle(kinds)
        between = STEPS / (kills + 1)
        self.plan = [(round(between * (number + 0.5)), kind) for number, kind in enumerate(kinds)]
        self.done: list[str] = []
        self.peer: int | None = None
        self.over = Event()
        self.thread = Thread(target=self._strike_all, daemon=True)

    def _strike_all(self) -> None:
        for step, kind in self.plan:
            while self.last_step() < step:
                if self.over.wait(0.02):
                    return
            sleep(self.random.uniform(0.0, 1.0))
            began = monotonic()
            getattr(self, f"_{kind}")()
            self.done.append(kind)
            logger.warning("%d: %s killed after step %d, %.1f s", len(self.done), kind, step, monotonic() - began)
        self.over.wait()  # a node ends with the thread that started it

    def last_step(self) -> int:
        return max((row["step"] for row in read_rows(self.folder)), default=0)

    def _find(self, log: str) -> int:
        """The process that writes a log, when there is one."""
        while not (found := processes_with_log(self.folder / "logs" / log)):
            if self.over.wait(0.02):
                raise AssertionError(f"the run ended, and nothing wrote to {log}")
        return found[0]

    def _kill(self, pid: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def _number(self) -> int:
        return self.random.randrange(2)

    def _rank(self) -> None:
        self._kill(self._find(f"learner_rank_{self._number()}.log"))

    def _engine(self) -> None:
        self._kill(self._find(f"engine_{self._number()}.log"))

    def _actor(self) -> None:
        server = self._find(f"engine_{self._number()}.log")
        with suppress(FileNotFoundError, ProcessLookupError):
            self._kill(parent_of(server))

    def _worker(self) -> None:
        while not (found := reward_workers()):
            if self.over.wait(0.02):
                return
        self._kill(self.random.choice(found))

    def _peer(self) -> None:
        """The next broadcast loses an engine in its middle."""
        self.peer = self._find(f"engine_{self._number()}.log")
        while self.peer is not None and not self.over.wait(0.02):
            pass

    def _node(self) -> None:
        """The one that the run is not directed from."""
        self.nodes.kill(1)
        self.nodes.start_again(1)

    def broadcasting(self) -> None:
        """Called as a broadcast begins."""
        peer, self.peer = self.peer, None
        if peer is not None:
            Timer(self.random.uniform(0.0, 0.01), self._kill, [peer]).start()


def reward_workers() -> list[int]:
    found = []
    for one in psutil.process_iter():
        with suppress(psutil.Error):
            ours = one.environ().get(OWNER) == str(os.getpid())
            if ours and any("shoal.rewards.workers.worker" in word for word in one.cmdline()):
                found.append(one.pid)
    return found


def test_a_run_trains_each_group_once_whatever_is_killed_of_it_on_two_nodes(
    tmp_path: Path, nodes: TwoNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    storm = ClusterStorm(tmp_path / "run", nodes, SEED, KILLS)
    whole = BroadcastSync.stream

    def stream(sync: BroadcastSync, *arguments: Any) -> int:
        storm.broadcasting()
        return whole(sync, *arguments)

    monkeypatch.setattr(BroadcastSync, "stream", stream)
    cfg = load_config("story", [*OVERRIDES, f"run.root={tmp_path}"])
    storm.thread.start()
    try:
        summary = train(cfg, storm.folder)
    finally:
        storm.over.set()
    assert summary["status"] == "finished"
    assert storm.done == [kind for _, kind in storm.plan]
    rows = read_rows(storm.folder)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    trained = []
    for step in range(1, STEPS + 1):
        groups = GroupRecording(storm.folder).read(step)
        assert groups is not None and len(groups) == PROMPTS, f"step {step}"
        trained += [(group.epoch, group.id) for group in groups]
    assert len(set(trained)) == len(trained) == STEPS * PROMPTS
    assert max(row["async/staleness_oldest"] for row in rows) <= cfg.source.max_staleness
    times = [row["seconds/total"] for row in rows]
    plain = median(later - earlier for earlier, later in pairwise(times))
    took = times[-1] - times[0]
    logger.warning(
        "%d steps with %d kills in %.0f s; %.2f s a step otherwise: %.1f s lost a kill, effective training time %.0f%%",
        STEPS,
        KILLS,
        took,
        plain,
        (took - plain * (STEPS - 1)) / KILLS,
        100 * plain * (STEPS - 1) / took,
    )
    wait_until_ended(storm.folder / "logs")
