"""status.json: what a run does now, for `shoal status` in another terminal. Written anew every few seconds."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shoal.files import write_atomically

STATUS_FILE = "status.json"


@dataclass
class Status:
    """A moment of a run. Times are seconds since 1970.

    `now` says what it does and `since` when that last changed; `rollouts` says who waits for whom among the groups.
    `parts` are rows of node, part and what it does; a node is empty where the part is on the run's own machine.
    """

    process: int
    host: str
    started: float
    time: float
    step: int
    total_steps: int
    now: str
    since: float
    rollouts: str = ""
    learner_version: int = 0
    engine_version: int = 0
    parts: list[list[str]] = field(default_factory=list)

    def write(self, run: Path) -> None:
        """Into a run folder, whole or not at all."""
        write_atomically(run / STATUS_FILE, json.dumps(asdict(self)) + "\n", durable=False)


def read_status(run: Path) -> Status | None:
    """What a run folder holds; None where there is none, or another version of Shoal wrote it."""
    try:
        found: Any = json.loads((run / STATUS_FILE).read_text(encoding="utf-8"))
        return Status(**found)
    except (OSError, ValueError, TypeError):
        return None
