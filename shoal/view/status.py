"""What a run does now, in lines for a terminal, read from its folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from socket import gethostname
from time import time
from typing import Any

from shoal.errors import ConfigError
from shoal.files import LOCK_FILE, trainer_of
from shoal.monitor.notes import ERROR, NOTES_FILE
from shoal.monitor.progress import duration
from shoal.monitor.rows import METRICS_FILE, complete_lines, read_rows
from shoal.monitor.status import Status, read_status
from shoal.monitor.summary import SUMMARY_FILE
from shoal.run_folder import SAVED, has_checkpoint

QUIET_SECONDS = 60.0
"""A run on another machine, whose lock may not be seen here, counts as running if it wrote its status since then."""
MARKS = (str(SAVED), METRICS_FILE, LOCK_FILE)


@dataclass
class _Found:
    """What the files of a run say. `process` is that of its trainer, if it is known to live."""

    folder: Path
    status: Status | None
    process: int | None
    last: dict[str, Any] | None


def status_lines(folder: Path) -> Iterator[str]:
    """The state of a run, in lines.

    Raises:
        ConfigError: there is no run in the folder.
    """
    if not any((folder / mark).exists() for mark in MARKS):
        raise ConfigError(f"{folder} is no run folder: there is no {SAVED} in it; shoal train names a run's folder")
    rows = [row for row in read_rows(folder) if "count/completions" in row]
    found = _Found(folder, read_status(folder), _process(folder), rows[-1] if rows else None)
    alive = found.process is not None
    if alive and found.status is not None and _is_of(found.status, found.process or 0):
        yield from _living(found, found.status)
    elif alive:
        yield f"{folder}: starting (process {found.process}): it loads the model, the data and the engine"
    elif found.status is not None and found.status.host != gethostname() and _age(found.status) < QUIET_SECONDS:
        yield from _living(found, found.status)
    else:
        yield from _ended(found)
    if found.last is not None:
        yield f"  {'last step':<10} {_step(folder, found.last)}"


def _living(found: _Found, status: Status) -> Iterator[str]:
    yield (
        f"{found.folder}: running, after step {status.step} of {status.total_steps} (process {status.process} on "
        f"{status.host}, for {duration(status.time - status.started)}); last sign of life {_ago(_age(status))}"
    )
    waits = status.rollouts.removeprefix(status.now).removeprefix("; ")
    yield f"  {'now':<10} {status.now}, for {duration(status.time - status.since)}"
    if waits:
        yield f"  {'rollouts':<10} {waits}"
    yield f"  {'versions':<10} learner {status.learner_version}, engine {_named(status.engine_version)}"
    rows = sorted((node or status.host, part, state) for node, part, state in status.parts)
    widths = [max((len(row[place]) for row in rows), default=0) for place in range(2)]
    for node, part, state in rows:
        yield f"  {node:<{widths[0]}}  {part:<{widths[1]}}  {state}"


def _ended(found: _Found) -> Iterator[str]:
    folder, status = found.folder, found.status
    summary, began = folder / SUMMARY_FILE, status.started if status else _changed(folder / METRICS_FILE)
    steps = f"after step {found.last['step']}" if found.last else "before its first step"
    go_on = f"go on with: shoal train resume={folder}"
    if _changed(summary) and _changed(summary) >= began:
        state = str(json.loads(summary.read_text(encoding="utf-8")).get("status", "finished"))
        yield f"{folder}: {state} {steps}{f'; {go_on}' if state == 'stopped' else ''}"
        return
    failure = _failure(folder, began)
    if failure is not None:
        yield f"{folder}: failed {steps}: {failure}"
        return
    if status is None:
        yield f"{folder}: its process is gone, {steps}; {go_on}"
        return
    who = f"its process ({status.process} on {status.host}) is gone"
    if status.host != gethostname():
        who = f"no sign of life of its process ({status.process} on {status.host})"
    then = go_on if has_checkpoint(folder) else f"it has no checkpoint: {go_on} starts at step 0"
    yield f"{folder}: {who}, {steps}: it was last seen {_ago(_age(status))}, at: {status.now}; {then}"


def _process(folder: Path) -> int | None:
    with suppress(OSError):
        return trainer_of(folder)
    return None


def _is_of(status: Status, process: int) -> bool:
    """Whether a status is that of this very process, and not of one that has ended."""
    return process in (0, status.process) or status.host != gethostname()


def _failure(folder: Path, began: float) -> str | None:
    """What ended the run since then, in its own words."""
    notes = [json.loads(line) for line in complete_lines(folder / NOTES_FILE)[-1:]]
    found = [str(note["text"]) for note in notes if note.get("level") == ERROR and note.get("time", 0.0) >= began]
    return found[-1] if found else None


def _step(folder: Path, row: dict[str, Any]) -> str:
    words = [f"{row['step']}, {_ago(time() - _changed(folder / METRICS_FILE))}"]
    if row.get("reward/mean") is not None:
        words.append(f"reward {row['reward/mean']:.3f}")
    if row.get("seconds/step") is not None:
        words.append(f"took {row['seconds/step']:.1f} s")
    return ", ".join(words)


def _named(version: int) -> str:
    """An engine's version in words."""
    return str(version) if version >= 0 else "none yet"


def _age(status: Status) -> float:
    return max(time() - status.time, 0.0)


def _ago(seconds: float) -> str:
    return f"{duration(max(seconds, 0.0))} ago"


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
