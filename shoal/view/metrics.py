"""metrics.jsonl by columns, followed while it grows."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable
from pathlib import Path
from threading import Lock
from typing import Any

from shoal.monitor.rows import METRICS_FILE
from shoal.view.lines import Follower, number


class Column:
    """The rows that have one key, by their numbers, and their values."""

    def __init__(self) -> None:
        self.rows = array("l")
        self.values = array("d")


class Metrics:
    """All columns of one run. A key that a row lacks takes no room in its column."""

    def __init__(self, run_dir: Path) -> None:
        self.follower = Follower(run_dir, METRICS_FILE)
        self.generation = 0
        self.steps = array("l")
        self.columns: dict[str, Column] = {}
        self.lock = Lock()

    def update(self) -> None:
        """Takes in what has been written since."""
        with self.lock:
            for row in self.follower.read():
                if self.follower.generation != self.generation:
                    self._clear()
                self._add(row)
            if self.follower.generation != self.generation:
                self._clear()

    def series(self, keys: Iterable[str], after: int = 0) -> dict[str, Any]:
        """Steps and values of each key over rows from number `after` on; a null is a value that was not finite."""
        found = {}
        for key in keys:
            column = self.columns.get(key)
            if column is None:
                continue
            first = bisect_left(column.rows, after)
            steps = [self.steps[row] for row in column.rows[first:]]
            found[key] = [steps, list(column.values[first:])]
        return {"generation": self.generation, "rows": len(self.steps), "series": found}

    def last(self, key: str) -> float | None:
        """The newest value of a key."""
        column = self.columns.get(key)
        return number(column.values[-1]) if column and column.values else None

    def last_step(self) -> int | None:
        """The newest step that was trained."""
        column = self.columns.get("count/completions")
        return self.steps[column.rows[-1]] if column else (self.steps[-1] if self.steps else None)

    def _clear(self) -> None:
        self.generation = self.follower.generation
        self.steps = array("l")
        self.columns = {}

    def _add(self, row: dict[str, Any]) -> None:
        step = row.get("step")
        if not isinstance(step, int) or isinstance(step, bool) or abs(step) > 2**53:
            self.follower.broken += 1
            return
        place = len(self.steps)
        self.steps.append(step)
        for key, value in row.items():
            if key == "step" or not (value is None or isinstance(value, int | float)):
                continue
            column = self.columns.get(key)
            if column is None:
                column = self.columns[key] = Column()
            known = number(value)
            column.rows.append(place)
            column.values.append(float("nan") if known is None else known)
