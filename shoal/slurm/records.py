"""What is written of a run's jobs: ROOT/slurm/NAME/attempts.jsonl, a line for each event of an attempt."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Event:
    """Something that happened to a job: `submitted`, `started`, `node`, `again` (queued again), `finished`, `ended`."""

    job: int
    attempt: int
    time: int
    event: str
    text: str
    nodes: str = ""
    log: str = ""


def record_file(run: Path) -> Path:
    """The file of the run folder `run`, which need not exist yet."""
    return run.parent / "slurm" / run.name / "attempts.jsonl"


def read_events(run: Path) -> list[Event]:
    """In the order in which they happened; a line that was cut off by the end of a job is left out."""
    file = record_file(run)
    if not file.is_file():
        return []
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            found.append(Event(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found


def add_event(run: Path, event: Event) -> None:
    """Appends one line, as the scripts do."""
    file = record_file(run)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(asdict(event)) + "\n")


def run_of_job(job: int, root: Path) -> Path | None:
    """The run folder under `root` that a job worked on."""
    for file in sorted(root.glob("slurm/*/attempts.jsonl")):
        run = root / file.parent.name
        if any(event.job == job for event in read_events(run)):
            return run
    return None
