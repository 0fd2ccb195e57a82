"""Says in the run folder what the run does, every few seconds while it lives."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread
from time import time

from shoal.monitor.status import Status
from shoal.training.state import Run

STATUS_SECONDS = 2.0


@contextmanager
def status_beside(run: Run, seconds: float = STATUS_SECONDS) -> Iterator[None]:
    """Beside the block: writes status.json at its start, every `seconds`, and at its end."""
    end, started = Event(), time()

    def keep_writing() -> None:
        since, before = started, ""
        while True:
            last = end.is_set()
            status = status_of(run, started)
            standing = f"{status.now} {status.rollouts} {status.step} {status.parts}"
            since, before = (since, before) if standing == before else (status.time, standing)
            status.since = since
            with suppress(OSError):  # a full disk, of which the run itself tells
                status.write(run.folder)
            if last:
                return
            end.wait(seconds)

    thread = Thread(target=keep_writing, name="status", daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join(seconds)


def status_of(run: Run, started: float) -> Status:
    """The run at this moment."""
    parts = run.parts
    now = time()
    return Status(
        process=os.getpid(),
        host=socket.gethostname(),
        started=started,
        time=now,
        step=run.step,
        total_steps=run.total_steps,
        now=run.monitor.progress.current_phase or "between two phases",
        since=now,
        rollouts=run.source.standing(),
        learner_version=parts.learner.version,
        engine_version=parts.engine.version,
        parts=[list(row) for row in (*parts.learner.places(), *parts.engine.places(), *parts.scorer.places())],
    )
