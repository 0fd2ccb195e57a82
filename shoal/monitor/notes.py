"""notes.jsonl: what a run said in words, and when: notes, warnings, and what ended it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import time

NOTES_FILE = "notes.jsonl"
NOTE, WARNING, ERROR = "note", "warning", "error"


class Notes(logging.Handler):
    """The file in a run folder, made with the first note. Warnings of Shoal's own loggers come here by themselves.

    `step` gives the step that the run is at. Rows: `time` (seconds since 1970), `step`, `level`, `text`. Nothing is
    ever taken out again: after a resume, what the steps that are done again said before is still to be read.
    """

    def __init__(self, run_dir: Path, step: Callable[[], int]) -> None:
        super().__init__(logging.WARNING)
        self.path = run_dir / NOTES_FILE
        self.step = step
        logging.getLogger("shoal").addHandler(self)

    def write(self, text: str, level: str = NOTE) -> None:
        """Adds a row; in silence where the disk is full, of which the run itself tells."""
        row = {"time": time(), "step": self.step(), "level": level, "text": text}
        line = json.dumps(row, ensure_ascii=False).encode("utf-8", "replace")
        with suppress(OSError), self.path.open("ab") as file:
            file.write(line + b"\n")

    def emit(self, record: logging.LogRecord) -> None:
        self.write(record.getMessage(), WARNING)

    def close(self) -> None:
        logging.getLogger("shoal").removeHandler(self)
        super().close()
