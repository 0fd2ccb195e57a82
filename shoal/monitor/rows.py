"""metrics.jsonl: one JSON object a line, and reading it after a crash."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from shoal.errors import DataError
from shoal.files import write_atomically

METRICS_FILE = "metrics.jsonl"

TIMING_PREFIXES = ("seconds/", "time/", "tokens_per_second/", "memory/", "judge/", "sync/")
TIMING_SUFFIXES = ("seconds", "per_second")
"""Keys of a row with one of these beginnings or ends depend on the machine and the moment (`judge/`: on which verdicts
were in the cache already; `sync/`: on what the engine held before). All others are equal in a run that was killed and
resumed."""


def is_timing(key: str) -> bool:
    """True for `seconds/rollout`, `memory/rss_peak_gib`, `engine/tokens_per_second`, `rewards/gsm8k/seconds`."""
    return key.startswith(TIMING_PREFIXES) or key.endswith(TIMING_SUFFIXES)


def without_timing(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row's values that a repetition of the run must reproduce."""
    return {key: value for key, value in row.items() if not is_timing(key)}


def to_line(row: Mapping[str, Any]) -> str:
    """One line of JSON. NaN and infinities, which JSON lacks, become null."""
    finite = {key: None if isinstance(value, float) and not isfinite(value) else value for key, value in row.items()}
    return json.dumps(finite) + "\n"


def complete_lines(path: Path) -> list[str]:
    """The lines of a file that end in a newline: a process that was killed may have left half a line at the end."""
    if not path.exists():
        return []
    return [line for line in _text(path).splitlines(keepends=True) if line.endswith("\n")]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is damaged: it is no UTF-8 text ({error.reason}); move it away") from error


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, or of its run folder; none where the file is missing.

    Raises:
        DataError: a complete line is not a row: a JSON object with a `step`.
    """
    file = path / METRICS_FILE if path.is_dir() else path
    rows = []
    for number, line in enumerate(complete_lines(file), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{file}, line {number}: not JSON ({error.msg}); remove the line") from error
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise DataError(f"{file}, line {number}: no object with a step; remove the line")
        rows.append(row)
    return rows


def keep_first_rows(path: Path, count: int) -> int:
    """Cuts the file to its first `count` rows, atomically, and gives the number of rows (or halves of one) cut off."""
    if not path.exists():
        return 0
    content = _text(path)
    kept = "".join(complete_lines(path)[:count])
    if kept != content:
        write_atomically(path, kept)
    return len(content.splitlines()) - len(kept.splitlines())
