"""Reading JSON lines that somebody else is writing, or wrote badly: what can be read is read, the rest is counted."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

LONGEST_LINE = 64 * 2**20
"""Bytes of a line that is still read; a longer one counts as broken."""


def read_line(line: bytes) -> dict[str, Any] | None:
    """The object of one line; None where it is none. Bytes that are not UTF-8 become U+FFFD, NaN becomes null."""
    if len(line) > LONGEST_LINE:
        return None
    try:
        row = json.loads(line.decode("utf-8", "replace"), parse_constant=lambda name: None)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def clean(value: Any) -> Any:
    """The value as JSON can hold it: floats that are not finite (1e999) become null."""
    if isinstance(value, dict):
        return {str(key): clean(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [clean(one) for one in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def to_json(value: Any) -> bytes:
    """ASCII only, so that lone surrogates, which UTF-8 lacks, survive."""
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")
    except ValueError:  # seldom, and cleaning a large map takes longer than writing it
        return json.dumps(clean(value), separators=(",", ":"), allow_nan=False).encode("ascii")


def number(value: Any) -> float | None:
    """A finite number as it is, anything else as None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if isfinite(value) else None
    except OverflowError:
        return None


def inside(path: Path, folder: Path) -> bool:
    """Whether a path, its symbolic links followed, lies in a folder."""
    return path.resolve().is_relative_to(folder.resolve())


def part_of(folder: Path, name: str | Path) -> Path:
    """A file of a run folder; where a link of that name leads out of it, a name that nothing has."""
    path = folder / name
    return path if inside(path, folder) else folder / ".outside"


@dataclass
class Follower:
    """The complete lines of a growing file of a folder. `generation` rises where the file was replaced or cut: what was
    read before no longer counts. `broken` counts lines that are no objects."""

    folder: Path
    name: str
    generation: int = 0
    broken: int = 0
    _offset: int = 0
    _identity: tuple[int, ...] = field(default=())
    _head: bytes = b""

    def read(self) -> Iterator[dict[str, Any]]:
        """What has been added since the last call; everything where `generation` rose. A half line at the end waits for
        its other half."""
        try:
            file = part_of(self.folder, self.name).open("rb")
        except OSError:
            self._restart(())
            return
        with file:
            status = os.fstat(file.fileno())
            identity = (status.st_dev, status.st_ino)
            head = file.read(min(len(self._head), 512))
            if identity != self._identity or status.st_size < self._offset or head != self._head:
                self._restart(identity)
                file.seek(0)
                self._head = file.read(512).rpartition(b"\n")[0]
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                row = read_line(line)
                if row is not None:
                    yield row
                elif line.strip():
                    self.broken += 1

    def _restart(self, identity: tuple[int, ...]) -> None:
        if self._identity or self._offset:
            self.generation += 1
        self._identity, self._offset, self.broken, self._head = identity, 0, 0, b""


def read_all(folder: Path, name: str) -> list[dict[str, Any]]:
    """Every object of a folder's file; none where it is missing."""
    try:
        with part_of(folder, name).open("rb") as file:
            return [row for line in file if (row := read_line(line)) is not None]
    except OSError:
        return []


def read_object(path: Path) -> dict[str, Any]:
    """The object of a JSON file; an empty one where there is none, or half of one."""
    try:
        return read_line(path.read_bytes()) or {}
    except OSError:
        return {}
