"""Fetched batches on disk, until no checkpoint needs them: what a kill between fetch and checkpoint would lose.

A batch is written before it is acknowledged, so that the server may forget it; a run that goes on from a checkpoint
takes the batches after it from here, in the same order, and asks the server only for what comes then.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from shoal.files import write_atomically
from shoal.rollout_api.scored_data import ScoredData

UNPACKED = "json"
"""The only key of a group that msgpack cannot hold."""


@dataclass
class Entry:
    """One batch: its number in this run (from 1), the step that asked for it, what tells it from every other batch of
    the server's (empty for stock servers), its groups, and the version of each group's weights where the server knows
    it."""

    number: int
    step: int
    mark: str
    groups: list[ScoredData]
    versions: list[int | None]


class Journal:
    """The folder `journal/` of a run."""

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / "journal"

    def write(self, entry: Entry) -> None:
        """On disk when this returns, whole. A group that msgpack cannot hold (integers beyond 64 bits, deep lists) is
        kept as JSON text: it cannot be trained on, and the source says why."""
        groups = entry.groups
        try:
            packed = msgpack.packb(vars(entry))
        except (ValueError, OverflowError):
            groups = [group if _packs(group) else {UNPACKED: json.dumps(group)} for group in groups]
            packed = msgpack.packb({**vars(entry), "groups": groups})
        write_atomically(self._file(entry.number), packed)

    def read(self, number: int) -> Entry | None:
        """A batch, or None where it was never fetched."""
        if not self._file(number).exists():
            return None
        values: dict[str, Any] = msgpack.unpackb(self._file(number).read_bytes(), strict_map_key=False)
        entry = Entry(**values)
        entry.groups = [json.loads(group[UNPACKED]) if UNPACKED in group else group for group in entry.groups]
        return entry

    def numbers(self) -> list[int]:
        """The batches that are here, in order."""
        return sorted(int(file.stem.removeprefix("batch_")) for file in self.folder.glob("batch_*.msgpack"))

    def marks(self) -> set[str]:
        """The marks of the batches that are here, as far as they have one."""
        entries = [self.read(number) for number in self.numbers()]
        return {entry.mark for entry in entries if entry is not None and entry.mark}

    def forget(self, before: int) -> None:
        """Removes the batches that no checkpoint needs: those numbered below `before`."""
        for number in self.numbers():
            if number < before:
                self._file(number).unlink()

    def _file(self, number: int) -> Path:
        return self.folder / f"batch_{number}.msgpack"


def _packs(group: ScoredData) -> bool:
    try:
        msgpack.packb(group)
    except (ValueError, OverflowError):
        return False
    return True
