"""`shoal slurm status`, `logs` and `cancel`: a job by its number, or by the folder of its run."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from shoal.errors import ConfigError
from shoal.slurm.commands import QueuedJob, bad_nodes, call, queued
from shoal.slurm.records import Event, read_events, record_file, run_of_job

LOOK_SECONDS = 0.5
QUEUE_SECONDS = 5.0
WAITS_FOR_NODES = (
    "Resources",
    "ReqNodeNotAvail",
    "Nodes_required",
    "BadConstraints",
    "PartitionConfig",
    "PartitionNodeLimit",
)


@dataclass(frozen=True)
class Found:
    """A job, and what is known of its run. `queued` is None where it has ended."""

    job: int
    run: Path | None
    queued: QueuedJob | None

    @property
    def events(self) -> list[Event]:
        """What happened to this job."""
        return [event for event in (read_events(self.run) if self.run else []) if event.job == self.job]


def find(where: str, root: Path) -> Found:
    """A job by its number, or the last job of a run folder.

    Raises:
        ConfigError: there is no such job, or no job of that run.
    """
    if where.isdecimal():
        job = int(where)
        there = queued(job)
        run = Path(there.comment) if there and there.comment.startswith("/") else run_of_job(job, root)
        if there is None and run is None:
            raise ConfigError(f"there is no job {job} in the queue, and none in {root / 'slurm'}")
        return Found(job, run, there)
    run = Path(where).absolute()
    jobs = [event.job for event in read_events(run)]
    if not jobs:
        raise ConfigError(f"{where}: no number of a job, and no run of one (there is no {record_file(run)})")
    return Found(jobs[-1], run, queued(jobs[-1]))


def status_lines(found: Found) -> Iterator[str]:
    """The state of a job, its nodes and its attempts."""
    there, events = found.queued, found.events
    ended = next((event for event in reversed(events) if event.event in ("finished", "ended")), None)
    if there is not None:
        on = f" on {there.nodes}" if there.nodes else ""
        why = f" ({there.reason})" if there.reason not in ("None", "") else ""
        yield f"job {found.job}: {there.state}{on}{why}, {there.used} of {there.limit}"
    else:
        yield f"job {found.job}: {ended.event if ended else 'not in the queue any more'}"
    if found.run is not None:
        yield f"  run {found.run}: {progress(found.run)}"
    for event in events:
        if event.event != "submitted":
            at = datetime.fromtimestamp(event.time).strftime("%m-%d %H:%M:%S")
            text = f"on {event.nodes}" if event.event == "started" else event.text
            yield f"  {at}  attempt {event.attempt}  {event.event}: {text}"
    if there is not None:
        waits = there.state == "PENDING" and there.reason.startswith(WAITS_FOR_NODES)
        if there.nodes or waits:
            yield from (f"  node {line}" for line in bad_nodes(there.nodes))


def progress(run: Path) -> str:
    """The last step of a run and when it was."""
    file = run / "metrics.jsonl"
    if not file.is_file():
        return "no step yet"
    last, summary = 0, run / "summary.json"
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                last = int(json.loads(line).get("step", last))
            except ValueError:
                continue  # half a line: it is being written
    state = json.loads(summary.read_text(encoding="utf-8")).get("status", "") if summary.is_file() else ""
    return f"step {last}, {time.time() - file.stat().st_mtime:.0f} s ago" + (f", {state}" if state else "")


def log_file(found: Found, attempt: int | None, part: str | None) -> Path:
    """The log of a job (of all its attempts), or one part of an attempt (the last one): driver, probe, ray-NODE.

    Raises:
        ConfigError: there is none yet, or none of that part.
    """
    started = [event for event in found.events if event.event == "started"]
    if not started or found.run is None:
        waiting = f"job {found.job} has not started yet" if found.queued else f"job {found.job} never started"
        raise ConfigError(f"{waiting}, so there is no log")
    if attempt is None and part is None:
        return Path(started[-1].log)
    number = started[-1].attempt if attempt is None else attempt
    folder = record_file(found.run).parent / f"{found.job}-{number}"
    file = folder / f"{part or 'driver'}.log"
    if not file.is_file():
        there = ", ".join(sorted(one.stem for one in folder.glob("*.log"))) or "none"
        raise ConfigError(f"there is no {file}; logs of attempt {number}: {there}")
    return file


def copy_log(file: Path, write: Callable[[str], object], goes_on: Callable[[], bool]) -> None:
    """Writes the log, and what comes to it as long as `goes_on`, which is asked every QUEUE_SECONDS."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        write(lines.read())
        asked = time.monotonic()
        going = goes_on()
        while True:
            text = lines.read()
            if text:
                write(text)
            elif not going:
                return
            else:
                time.sleep(LOOK_SECONDS)
            if going and time.monotonic() - asked > QUEUE_SECONDS:
                asked, going = time.monotonic(), goes_on()


def show_log(found: Found, attempt: int | None, part: str | None, follow: bool) -> None:
    """To stdout. With `follow` a job that waits is waited for: it has no log before its start."""
    while follow and found.queued is not None and not any(event.event == "started" for event in found.events):
        time.sleep(QUEUE_SECONDS)
        found = Found(found.job, found.run, queued(found.job))

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    copy_log(log_file(found, attempt, part), write, lambda: follow and queued(found.job) is not None)


def cancel(found: Found, now: bool) -> str:
    """Ends a job: a running one saves first, unless `now`. What was done, in words.

    Raises:
        ConfigError: it has ended already.
    """
    if found.queued is None:
        raise ConfigError(f"job {found.job} is not in the queue any more")
    if now or found.queued.state != "RUNNING":
        call("scancel", str(found.job))
        return f"job {found.job} is cancelled"
    call("scancel", "--batch", "--signal=USR2", str(found.job))
    return f"job {found.job} saves and ends; --now ends it at once"
