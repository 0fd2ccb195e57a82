"""Verdicts under a deadline: processes that can be killed, because a thread or a signal handler cannot be relied on.

SIGALRM handlers do not run in threads, nor while a regular expression or another C function holds the interpreter.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from itertools import count
from logging import getLogger
from selectors import EVENT_READ, DefaultSelector
from types import TracebackType

from shoal.child_process import ChildProcess
from shoal.errors import TrainingError
from shoal.rewards.base import Submission
from shoal.rewards.verdict import Verdict
from shoal.rewards.workers.worker import READY
from shoal.types import Place

logger = getLogger(__name__)

START_SECONDS = 120.0  # importing a verifier's packages, on a busy machine
DIED = "the process died"
MOST_STARTS = 5  # in a row that end by a signal, such as that of the kernel where memory runs out
LONGEST_READ = 65536
# A worker is sent jobs ahead, so that it does not wait for us between them: never more than fit into its pipe, since
# a worker that hangs reads nothing and our write may not wait for it.
MOST_AHEAD, PIPE_BYTES = 32, 60000

Job = tuple[str, Submission]
"""A verifier's import path (one of the pool's) and what it is to judge."""


class _Worker:
    """One process. `jobs` are what it was sent and has not judged, the first what it judges now: index and bytes.
    Nothing may be sent before it said that it is ready."""

    def __init__(self, paths: Sequence[str], timeout: float, memory_gib: float) -> None:
        command = [sys.executable, "-P", "-m", "shoal.rewards.workers.worker", str(timeout), str(memory_gib), *paths]
        # The worker must find what this process finds.
        found = {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        self.process = ChildProcess(command, environment=found, pipes=True)
        self.ready = False
        self.jobs: deque[tuple[int, int]] = deque()
        self.started = time.monotonic()

    def send(self, index: int, line: bytes) -> bool:
        """Sends a job, unless its line does not fit into the pipe behind those that may be waiting there."""
        if self.jobs and sum(size for _, size in self.jobs) + len(line) > PIPE_BYTES:
            return False
        if not self.jobs:
            self.started = time.monotonic()
        self.jobs.append((index, len(line)))
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line)
            self.process.stdin.flush()
        except BrokenPipeError:
            logger.debug("worker %d is gone; its end of output will say so", self.process.pid)
        return True

    def receive(self) -> list[dict[str, object]]:
        """The replies that are waiting; none where the process has ended."""
        assert self.process.stdout is not None
        read = os.read(self.process.stdout.fileno(), LONGEST_READ)
        return [json.loads(line) for line in read.splitlines()]

    def kill(self) -> int:
        """Ends the process and all that it started; gives its exit status."""
        status = self.process.kill_group()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                logger.debug("worker %d left a request unread", self.process.pid)
        return status


class DeadlinePool:
    """Worker processes that judge under a deadline and are replaced when killed. For one caller at a time.

    `paths` are the verifiers' import paths, `timeout` the seconds of one verdict (a worker's start does not count),
    `memory_gib` the memory of one worker (0: no limit). Nothing is started before the first job.
    """

    def __init__(self, paths: Sequence[str], *, workers: int, timeout: float, memory_gib: float) -> None:
        self.paths = list(paths)
        self.size = workers
        self.timeout = timeout
        self.memory_gib = memory_gib
        self.workers: list[_Worker] = []
        self.failed_starts = 0
        self.jobs: dict[int, Job] = {}  # by ticket
        self.tickets = count()
        self.waiting: deque[int] = deque()
        self.verdicts: dict[int, Verdict] = {}

    def add(self, job: Job) -> int:
        """Has a job judged while the caller does other things, and `look`s now and then; gives the job's ticket.

        Raises:
            TrainingError: a worker does not start.
        """
        ticket = next(self.tickets)
        self.waiting.append(ticket)
        self.jobs[ticket] = job
        self.look()
        return ticket

    def take(self, tickets: Sequence[int]) -> list[Verdict]:
        """The verdicts of these jobs, in order, each given once. A score is missing after a crash of the worker or at
        the deadline.

        Raises:
            TrainingError: a worker does not start.
        """
        while any(ticket not in self.verdicts for ticket in tickets):
            self.look(wait=True)
        for ticket in tickets:
            del self.jobs[ticket]
        return [self.verdicts.pop(ticket) for ticket in tickets]

    def extend(self, paths: Sequence[str]) -> None:
        """Has later jobs judged by workers that also import these; those under way end first.

        Raises:
            TrainingError: a worker does not start.
        """
        while len(self.verdicts) < len(self.jobs):
            self.look(wait=True)
        for worker in self.workers:
            worker.kill()
        self.workers = []
        self.paths = sorted({*self.paths, *paths})

    def look(self, *, wait: bool = False) -> None:
        """Takes replies, sends jobs and keeps the deadlines; with `wait`, blocks until a reply or a deadline.

        Raises:
            TrainingError: a worker does not start.
        """
        try:
            while len(self.workers) < min(self.size, len(self.jobs) - len(self.verdicts)):
                self.workers.append(_Worker(self.paths, self.timeout, self.memory_gib))
            self._send()
            for worker in self._readable(wait):
                self._take(worker)
            for worker in [worker for worker in self.workers if self._left(worker) <= 0]:
                self._give_up(worker, f"no verdict within {self.timeout:g} s")
        except BaseException:
            self.close()  # or a reply to one of these jobs would be taken for one to a later job
            raise

    def places(self) -> list[Place]:
        """The workers, for people: see `Place`."""
        asked = len(self.jobs) - len(self.verdicts)
        return [("", "reward workers", f"{len(self.workers)} of {self.size} run, {asked} verdicts to come")]

    def close(self) -> None:
        """Ends all workers; the pool may be used again."""
        for worker in self.workers:
            worker.kill()
        self.workers = []
        self._forget()

    def __enter__(self) -> DeadlinePool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _forget(self) -> None:
        self.jobs, self.waiting, self.verdicts = {}, deque(), {}

    def _send(self) -> None:
        """Gives out jobs, one to each worker in turn. Few are given ahead towards the end: they might wait behind one
        that hangs."""
        for most in range(1, MOST_AHEAD + 1):
            for worker in self.workers:
                ahead = worker.ready and len(worker.jobs) < most
                if ahead and len(self.waiting) > (most - 1) * 4 * len(self.workers):
                    path, submission = self.jobs[self.waiting[0]]
                    line = json.dumps({"path": path, "submission": vars(submission)}, default=str) + "\n"
                    if worker.send(self.waiting[0], line.encode()):
                        self.waiting.popleft()

    def _left(self, worker: _Worker) -> float:
        """Seconds that are left to a worker; without end for an idle one."""
        if worker.ready and not worker.jobs:
            return float("inf")
        return worker.started + (self.timeout if worker.ready else START_SECONDS) - time.monotonic()

    def _readable(self, wait: bool) -> list[_Worker]:
        """Workers that have replied or ended, where `wait` after waiting for one at most until the next deadline."""
        with DefaultSelector() as selector:
            for worker in self.workers:
                assert worker.process.stdout is not None
                selector.register(worker.process.stdout, EVENT_READ, worker)
            seconds = min(map(self._left, self.workers)) if wait else 0.0
            return [key.data for key, _ in selector.select(max(0.0, seconds))]

    def _take(self, worker: _Worker) -> None:
        replies = worker.receive()
        if not replies:
            self._give_up(worker, DIED)
        for reply in replies:
            if reply == READY:
                worker.ready = True
                self.failed_starts = 0
            else:
                index, _ = worker.jobs.popleft()
                self.verdicts[index] = Verdict(**reply)  # type: ignore[arg-type]
                worker.started = time.monotonic()

    def _give_up(self, worker: _Worker, reason: str) -> None:
        """Kills a worker and takes it out of the pool; what it was judging is missing, what it had not begun waits."""
        self.workers.remove(worker)
        seconds = time.monotonic() - worker.started
        status = worker.kill()
        if not worker.ready:
            self.failed_starts += 1
            if status < 0 and reason == DIED and self.failed_starts < MOST_STARTS:
                logger.warning("a reward worker was killed by signal %d while starting; it is started again", -status)
                return
            raise TrainingError(
                f"a reward worker did not start ({reason}, exit status {status} after {seconds:.0f} s); it imports "
                f"{', '.join(self.paths)} within {START_SECONDS:.0f} s, and its own output stands above"
            )
        if worker.jobs:
            logger.debug("a reward worker was replaced: %s, exit status %d", reason, status)
            index, _ = worker.jobs.popleft()
            self.verdicts[index] = Verdict(None, seconds, reason)
            self.waiting.extendleft(index for index, _ in reversed(worker.jobs))
