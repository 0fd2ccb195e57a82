"""Which version a checkpoint or an adapter on disk is: a small file in its folder, read by the worker that loads it."""

from __future__ import annotations

import json
from pathlib import Path

VERSION_FILE = "shoal_version.json"
UNKNOWN = -1


def write_version(folder: Path, version: int) -> None:
    """Says in a folder which version of the weights it holds."""
    (folder / VERSION_FILE).write_text(json.dumps({"version": version}), encoding="utf-8")


def version_in(folder: Path | str) -> int:
    """The version of the weights in a folder; UNKNOWN where nothing says so."""
    file = Path(folder) / VERSION_FILE
    return int(json.loads(file.read_text(encoding="utf-8"))["version"]) if file.is_file() else UNKNOWN
