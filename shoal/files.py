"""Writing files so that a reader finds them whole or not at all; and saying in one line what a file system refused."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shoal.errors import ConfigError

# What a file system answers, as opposed to a network or another process.
FILE_ERRORS = {
    getattr(errno, name)
    for names in (
        ("EACCES", "EDQUOT", "EEXIST", "EFBIG", "EIO", "EISDIR", "ELOOP", "EMFILE", "ENAMETOOLONG", "ENFILE"),
        ("ENOENT", "ENOSPC", "ENOTDIR", "ENOTEMPTY", "EPERM", "EROFS", "ESTALE"),
    )
    for name in names
    if hasattr(errno, name)
}

LOCK_FILE = ".lock"
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux


def file_trouble(error: BaseException) -> str | None:
    """What the file system refused, in one line: `outputs/one/metrics.jsonl: No space left on device`.

    It is looked for in what led to the error too: torch reports a full disk as a RuntimeError. None where the file
    system refused nothing.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in FILE_ERRORS:
            where = f"{os.fsdecode(seen.filename)}: " if isinstance(seen.filename, str | bytes) else ""
            return f"{where}{seen.strerror or seen}"
        seen = seen.__cause__ or seen.__context__
    return None


@contextmanager
def only_trainer(folder: Path) -> Iterator[None]:
    """Locks a run folder against a second trainer; the folder is made where it is missing.

    The lock is the process's own: it ends with the process, however that ends, and children do not inherit it.

    Raises:
        ConfigError: another process trains there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("a+", encoding="utf-8") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            lock.seek(0)
            raise ConfigError(
                f"{folder}: another trainer (process {lock.read().strip() or 'unknown'}) writes there; wait until it "
                "has ended, or choose another run.name"
            ) from error
        except OSError:
            # A file system without locks: nothing can be said about a second trainer.
            yield
            return
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def trainer_of(folder: Path) -> int | None:
    """The process that `only_trainer` has locked a run folder for (0 where it has no number here), or None. On some
    network file systems a process of another machine is not seen.

    Raises:
        OSError: the file system knows no locks.
    """
    try:
        with (folder / LOCK_FILE).open("rb") as lock:
            asked = struct.pack(FLOCK, *_whole_file(fcntl.F_WRLCK))
            found = struct.unpack(FLOCK, fcntl.fcntl(lock, fcntl.F_GETLK, asked))
    except FileNotFoundError:
        return None
    kind, process = (found[0], found[4]) if sys.platform == "linux" else (found[3], found[2])
    return None if kind == fcntl.F_UNLCK else max(process, 0)


FLOCK = "hhqqi4x" if sys.platform == "linux" else "qqihh"
"""The kernel's `struct flock`."""


def _whole_file(kind: int) -> tuple[int, ...]:
    return (kind, os.SEEK_SET, 0, 0, 0) if sys.platform == "linux" else (0, 0, 0, kind, os.SEEK_SET)


def cache_folder() -> Path:
    """$SHOAL_CACHE, or ~/.cache/shoal.

    Raises:
        ConfigError: neither is there.
    """
    try:
        return Path(os.environ.get("SHOAL_CACHE") or Path.home() / ".cache" / "shoal")
    except RuntimeError as error:
        raise ConfigError("there is no home folder: set SHOAL_CACHE to a folder that can be written") from error


def write_atomically(path: Path, content: bytes | str, *, durable: bool = True) -> None:
    """Writes beside `path`, syncs to disk and renames: after a crash the old or the new content is there, never a half.

    Text is written as UTF-8. The folder of `path` is made where it is missing. `durable=False` leaves the sync out:
    still whole after the death of the process, not after a power cut, and cheap enough for every step.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id keeps two processes that write the same file from truncating each other's half.
    partial = path.with_name(f".writing_{os.getpid()}_{path.name}")
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    if durable:
        _sync(path.parent)


def replace_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Calls `write(path)` on a fresh folder beside `folder`, then puts it in `folder`'s place.

    Whenever the process dies, `folder` is the old one or the new one, whole. (Where the file system cannot exchange two
    folders, the old one may be left as `.old_NAME`; the next call takes it back.)
    """
    partial, old = folder.with_name(f".writing_{folder.name}"), folder.with_name(f".old_{folder.name}")
    if old.exists() and not folder.exists():
        old.rename(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        write(partial)
        sync_folder(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # half a model takes room and is of no use
        raise
    if folder.exists() and not _exchange(partial, folder):
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    if folder.exists():
        shutil.rmtree(partial, ignore_errors=True)  # the one that was there before
    else:
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    _sync(folder.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps the names of two folders in one step; whether this system can."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # Linux
    return rename is not None and rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0


def sync_folder(folder: Path) -> None:
    """Makes the files in `folder` and below it, and their names, survive a power cut."""
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
