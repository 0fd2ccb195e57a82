"""adaptive_rubrics.jsonl: one row for each prompt of a training step, with its criteria, scores and changes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shoal.files import write_atomically

FILE = "adaptive_rubrics.jsonl"


class RubricLog:
    """The file in a run folder. Rows after the step that the run goes on from are dropped before the first write."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.step = 0
        self.opened = False

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Appends whole rows."""
        if not self.opened:
            self._drop_later()
            self.opened = True
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def _drop_later(self) -> None:
        if not self.path.exists():
            return
        # A process that was killed may have left half a line at the end.
        lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]
        kept = [line for line in lines if json.loads(line)["step"] <= self.step]
        write_atomically(self.path, "".join(line + "\n" for line in kept))
