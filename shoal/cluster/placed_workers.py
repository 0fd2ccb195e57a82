"""Reward workers on the nodes of a Ray cluster: an actor on each node holds so many, with their sandboxes."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from logging import getLogger
from pathlib import Path
from queue import SimpleQueue
from time import monotonic
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from shoal.cluster.cluster import Cluster
from shoal.cluster.outcome import outcome
from shoal.cluster.own_log import write_to
from shoal.errors import TrainingError
from shoal.rewards.verdict import Verdict
from shoal.rewards.workers.deadline import START_SECONDS, DeadlinePool, Job
from shoal.types import Place

logger = getLogger(__name__)

AHEAD = 2  # jobs that a node is given for each of its workers: one is judged, the next is there
LOOK_SECONDS = 1.0
MOST_LOSSES = 20  # of actors of one run that die, each perhaps with what it judges


class WorkersActor:
    """Holds the workers of a node. So many calls come at a time, each to a worker of its own. They find the modules
    that the run's own process finds, in the folders `found`; their output goes to `log`."""

    def __init__(
        self, log: Path, found: Sequence[str], paths: Sequence[str], workers: int, timeout: float, memory_gib: float
    ) -> None:
        write_to(log)
        sys.path += [folder for folder in found if folder not in sys.path]
        self.free: SimpleQueue[DeadlinePool] = SimpleQueue()
        for _ in range(workers):
            self.free.put(DeadlinePool(paths, workers=1, timeout=timeout, memory_gib=memory_gib))

    def judge(self, job: Job) -> Any:
        """The verdict on one submission, as an `outcome`."""
        pool = self.free.get()
        try:
            return outcome(lambda: pool.take([pool.add(job)])[0])
        finally:
            self.free.put(pool)


@dataclass
class _Node:
    """A node's actor, None where the node is lost, and the tickets of the calls that it has."""

    address: str
    actor: Any = None
    asked: dict[Any, int] = field(default_factory=dict)


class PlacedPool:
    """As `DeadlinePool`, over the nodes of a cluster: a job goes to the node that has most room. A node that is lost is
    done without until it is back, an actor that died is replaced, and others judge what they owed.

    `each` is the number of workers on every node, each node's write a log in `logs`.
    """

    def __init__(
        self, cluster: Cluster, logs: Path, paths: Sequence[str], *, each: int, timeout: float, memory_gib: float
    ) -> None:
        self.cluster = cluster
        self.logs = logs.absolute()
        self.paths = list(paths)
        self.each = each
        self.timeout = timeout
        self.memory_gib = memory_gib
        self.nodes = [_Node(address) for address in cluster.addresses]
        self.jobs: dict[int, Job] = {}
        self.verdicts: dict[int, Verdict] = {}
        self.waiting: deque[int] = deque()
        self.tickets = count()
        self.losses = 0
        self.looked = 0.0

    def add(self, job: Job) -> int:
        """See `DeadlinePool.add`."""
        ticket = next(self.tickets)
        self.jobs[ticket] = job
        self.waiting.append(ticket)
        self.look()
        return ticket

    def take(self, tickets: Sequence[int]) -> list[Verdict]:
        """See `DeadlinePool.take`.

        Raises:
            TrainingError: workers do not start, or none gives a verdict any more.
        """
        patience = START_SECONDS + 2 * self.timeout
        before, since = -1, monotonic()
        while missing := [ticket for ticket in tickets if ticket not in self.verdicts]:
            if len(missing) != before:
                before, since = len(missing), monotonic()
            elif monotonic() - since > patience:
                raise TrainingError(
                    f"no reward worker on {', '.join(one.address for one in self.nodes)} has given a verdict within "
                    f"{patience:g} s (reward.timeout): are the nodes there?"
                )
            self.look(wait=True)
        for ticket in tickets:
            del self.jobs[ticket]
        return [self.verdicts.pop(ticket) for ticket in tickets]

    def extend(self, paths: Sequence[str]) -> None:
        """See `DeadlinePool.extend`. What is under way is judged again by the new workers."""
        self._end()
        self.waiting = deque(ticket for ticket in self.jobs if ticket not in self.verdicts)
        self.paths = sorted({*self.paths, *paths})

    def look(self, *, wait: bool = False) -> None:
        """Takes verdicts and gives out jobs; with `wait`, blocks until one comes, for a second at most.

        Raises:
            TrainingError: workers do not start, or too many actors have died.
        """
        self._give_out()
        calls = {call: node for node in self.nodes for call in node.asked}
        if not calls:
            return
        seconds = LOOK_SECONDS if wait else 0.0
        ready, _ = ray.wait(list(calls), num_returns=1 if wait else len(calls), timeout=seconds)
        for call in ready:
            self._take(calls[call], call)
        if not ready and wait:
            for address in self.cluster.lost_nodes():
                for node in self.nodes:
                    if node.address == address:
                        self._lost(node, "the Ray node is lost")
        self._give_out()

    def places(self) -> list[Place]:
        """See `Place`."""
        return [
            (
                node.address,
                "reward workers",
                f"{self.each}, {len(node.asked)} verdicts to come" if node.actor else "not started",
            )
            for node in self.nodes
        ]

    def close(self) -> None:
        """Ends all workers; the pool may be used again."""
        self._end()
        self.jobs, self.waiting, self.verdicts = {}, deque(), {}

    def _log(self, node: _Node) -> Path:
        return self.logs / f"reward_workers_{node.address}.log"

    def _end(self) -> None:
        for node in self.nodes:
            if node.actor is not None:
                ray.kill(node.actor)
            node.actor, node.asked = None, {}

    def _give_out(self) -> None:
        if self.waiting and any(node.actor is None for node in self.nodes):
            self._start()
        there = [node for node in self.nodes if node.actor is not None]
        while self.waiting and there:
            node = min(there, key=lambda one: len(one.asked))
            if len(node.asked) >= AHEAD * self.each:
                return
            ticket = self.waiting.popleft()
            node.asked[node.actor.judge.remote(self.jobs[ticket])] = ticket

    def _start(self) -> None:
        """Starts the actors of nodes that are there; looks for lost nodes now and then alone."""
        if monotonic() - self.looked < LOOK_SECONDS:
            return
        self.looked = monotonic()
        lost = self.cluster.lost_nodes()
        for node in self.nodes:
            if node.actor is None and node.address not in lost and node.address in self.cluster.addresses:
                options = self.cluster.node_options(node.address)
                make = ray.remote(WorkersActor).options(**options, max_restarts=0, max_concurrency=self.each)
                found = [folder or os.getcwd() for folder in sys.path]
                log = self._log(node)
                node.actor = make.remote(log, found, self.paths, self.each, self.timeout, self.memory_gib)

    def _take(self, node: _Node, call: Any) -> None:
        if call not in node.asked:
            return
        try:
            verdict, error = ray.get(call)
        except RayTaskError:
            raise
        except RayError as gone:
            self._lost(node, " ".join(str(gone).split())[:200])
            return
        ticket = node.asked.pop(call)
        if error is not None:
            raise TrainingError(f"node {node.address}: {error[1]} (in {self._log(node)})")
        self.verdicts[ticket] = verdict

    def _lost(self, node: _Node, why: str) -> None:
        """Has the others judge what a node owes."""
        self.losses += 1
        if self.losses > MOST_LOSSES:
            raise TrainingError(f"the reward workers of {node.address} died, as did {MOST_LOSSES} others before: {why}")
        logger.warning("the reward workers of node %s are gone (%s); they are replaced", node.address, why)
        if node.actor is not None:
            ray.kill(node.actor)
        self.waiting.extendleft(reversed(node.asked.values()))
        node.actor, node.asked = None, {}
