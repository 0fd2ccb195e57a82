"""Groups on disk: one msgpack file a step, written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import msgpack

from shoal.files import write_atomically
from shoal.types import Group


class GroupRecording:
    """The folder `groups/` of a run."""

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / "groups"

    def write(self, step: int, groups: list[Group]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        packed = msgpack.packb([group.to_dict() for group in groups])
        write_atomically(self._file(step), packed)

    def read(self, step: int) -> list[Group] | None:
        """The groups of a step, or None where none were recorded."""
        if not self._file(step).exists():
            return None
        return [Group.from_dict(row) for row in msgpack.unpackb(self._file(step).read_bytes())]

    def last_step(self) -> int:
        """The newest recorded step; 0 where there is none."""
        return max((int(file.stem.removeprefix("step_")) for file in self.folder.glob("step_*.msgpack")), default=0)

    def _file(self, step: int) -> Path:
        return self.folder / f"step_{step}.msgpack"
