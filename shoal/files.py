"""Writing files so that a reader finds them whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, content: bytes | str, *, durable: bool = True) -> None:
    """Writes beside `path`, syncs to disk and renames: after a crash the old or the new content is there, never a half.

    Text is written as UTF-8. The folder of `path` is made where it is missing. `durable=False` leaves the sync out:
    still whole after the death of the process, not after a power cut, and cheap enough for every step.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id keeps two processes that write the same file from truncating each other's half.
    partial = path.with_name(f".writing_{os.getpid()}_{path.name}")
    with partial.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    partial.replace(path)
    if durable:
        _sync(path.parent)


def replace_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Calls `write(path)` on a fresh folder beside `folder`, then puts it in `folder`'s place."""
    partial = folder.with_name(f".writing_{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    sync_folder(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def sync_folder(folder: Path) -> None:
    """Makes the files directly in `folder`, and their names, survive a power cut. Subfolders are not entered."""
    for path in folder.iterdir():
        if path.is_file():
            _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
