"""The index of a run's samples: a SQLite file in the cache folder, made from samples/ and evaluations/ file by file.

It holds what completions came to and where they stand, never their texts. Files that changed or went are indexed anew,
so that it follows a run; it can be deleted at any time.
"""

from __future__ import annotations

import os
import re
import sqlite3
from contextlib import suppress
from hashlib import sha256
from logging import getLogger
from pathlib import Path
from threading import RLock
from time import monotonic

from shoal.files import cache_folder
from shoal.monitor.samples import EVALUATIONS, SAMPLES
from shoal.view.lines import inside, part_of
from shoal.view.scan import scan

logger = getLogger(__name__)

SCHEMA_VERSION = 2
NAME = re.compile(r"step_(\d{1,15})\.jsonl")

SCHEMA = """
CREATE TABLE files (
  id INTEGER PRIMARY KEY, kind TEXT, step INTEGER, path TEXT, size INTEGER, mtime INTEGER, broken INTEGER,
  first_group INTEGER, last_group INTEGER, first INTEGER, last INTEGER);
CREATE TABLE groups (
  id INTEGER PRIMARY KEY, file INTEGER, kind TEXT, step INTEGER, place INTEGER, name TEXT, epoch INTEGER, source TEXT,
  first INTEGER, count INTEGER, known INTEGER, rights INTEGER, low REAL, high REAL, mean REAL, length REAL,
  outcome TEXT);
CREATE TABLE completions (
  id INTEGER PRIMARY KEY, grp INTEGER, idx INTEGER, offset INTEGER, size INTEGER, reward REAL, advantage REAL,
  stop TEXT, length INTEGER, rightly INTEGER, left_out INTEGER, gap REAL);
CREATE INDEX by_place ON groups (kind, step, place);
CREATE INDEX by_name ON groups (kind, name);
"""


def index_path(run_dir: Path) -> Path:
    """Where the index of a run lies."""
    key = sha256(str(run_dir.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return cache_folder() / "view" / f"{key}.sqlite"


class SampleIndex:
    """The index of one run folder, or of one file of samples. Safe to use from several threads, one at a time.

    `generation` rises with every change; `lock` is to be held around reads of `connection`.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.lock = RLock()
        self.generation = 0
        self.waiting = 0
        self.connection = self._open()
        rows = self.connection.execute("SELECT kind, path, size, mtime, id, broken FROM files")
        self.files = {(kind, path): (size, mtime, number, broken) for kind, path, size, mtime, number, broken in rows}

    @property
    def groups(self) -> int:
        """How many are indexed, about: ids are given in their order."""
        with self.lock:
            return self._next("groups") - 1

    @property
    def broken(self) -> int:
        """Lines that could not be read, over all files."""
        return sum(broken for *_, broken in self.files.values())

    def update(self, seconds: float = 0.5) -> None:
        """Takes in changed files, the newest step first, for about so long; `waiting` is how many are left."""
        with self.lock:
            until = monotonic() + seconds
            there = self._listed()
            changed = [
                (step, kind, path, size, mtime)
                for (kind, path), (step, size, mtime) in there.items()
                if self.files.get((kind, path), ())[:2] != (size, mtime)
            ]
            gone = [key for key in self.files if key not in there]
            if not changed and not gone:
                self.waiting = 0
                return
            for key in gone:
                self._forget(key)
            changed.sort(reverse=True)
            done = 0
            for step, kind, path, size, mtime in changed:
                self._forget((kind, path))
                self._take_in(step, kind, path, size, mtime)
                done += 1
                if monotonic() > until:
                    break
            self.connection.commit()
            self.generation += 1
            self.waiting = len(changed) - done

    def path(self, kind: str, name: str) -> Path:
        """The file of a row of `files`."""
        return self.run_dir if self.run_dir.is_file() else part_of(self.run_dir, Path(kind) / name)

    def _listed(self) -> dict[tuple[str, str], tuple[int, int, int]]:
        found = {}
        if self.run_dir.is_file():
            status = self.run_dir.stat()
            return {(SAMPLES, self.run_dir.name): (0, status.st_size, status.st_mtime_ns)}
        for kind in (SAMPLES, EVALUATIONS):
            with suppress(OSError), os.scandir(self.run_dir / kind) as entries:
                for entry in entries:
                    match = NAME.fullmatch(entry.name)
                    # A link that leads out of the run folder is no part of the run.
                    if match and entry.is_file() and (not entry.is_symlink() or inside(Path(entry), self.run_dir)):
                        status = entry.stat()
                        found[kind, entry.name] = (int(match[1]), status.st_size, status.st_mtime_ns)
        return found

    def _forget(self, key: tuple[str, str]) -> None:
        known = self.files.pop(key, None)
        if known is None:
            return
        bounds = self.connection.execute(
            "SELECT first_group, last_group, first, last FROM files WHERE id = ?", (known[2],)
        ).fetchone()
        self.connection.execute("DELETE FROM groups WHERE id BETWEEN ? AND ?", bounds[:2])
        self.connection.execute("DELETE FROM completions WHERE id BETWEEN ? AND ?", bounds[2:])
        self.connection.execute("DELETE FROM files WHERE id = ?", (known[2],))

    def _take_in(self, step: int, kind: str, path: str, size: int, mtime: int) -> None:
        try:
            found = scan(self.path(kind, path))
        except OSError as error:
            logger.warning("%s cannot be read: %s", self.path(kind, path), error)
            return
        number = self._next("files")
        group_id, completion_id = self._next("groups"), self._next("completions")
        first_group, first = group_id, completion_id
        groups, completions = [], []
        for place, group in enumerate(found.groups):
            groups.append(
                (
                    group_id,
                    number,
                    kind,
                    step,
                    place,
                    group.name,
                    group.epoch,
                    group.source,
                    completion_id,
                    *group.numbers(),
                )
            )
            for one in group.completions:
                completions.append((completion_id, group_id, *one.numbers()))
                completion_id += 1
            group_id += 1
        self.connection.executemany(f"INSERT INTO groups VALUES ({', '.join('?' * 17)})", groups)
        self.connection.executemany(f"INSERT INTO completions VALUES ({', '.join('?' * 12)})", completions)
        bounds = (first_group, group_id - 1, first, completion_id - 1)
        row = (number, kind, step, path, size, mtime, found.broken, *bounds)
        self.connection.execute(f"INSERT INTO files VALUES ({', '.join('?' * 11)})", row)
        self.files[kind, path] = (size, mtime, number, found.broken)

    def _next(self, table: str) -> int:
        return int(self.connection.execute(f"SELECT COALESCE(MAX(id), 0) + 1 FROM {table}").fetchone()[0])

    def _open(self) -> sqlite3.Connection:
        path = index_path(self.run_dir)
        try:
            return _connect(path)
        except sqlite3.OperationalError as error:
            # Another `shoal view` has it, or the cache cannot be written.
            logger.info("%s: %s; the index of %s is kept in memory", path, error, self.run_dir)
        except (sqlite3.DatabaseError, OSError) as error:
            # Damaged, or of another release: all of it can be made again.
            logger.info("%s: %s; it is made again", path, error)
            with suppress(OSError, sqlite3.DatabaseError):
                path.unlink()
                return _connect(path)
        return _connect(None)

    def close(self) -> None:
        """Closes the file."""
        self.connection.close()


def _connect(path: Path | None) -> sqlite3.Connection:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path or ":memory:", check_same_thread=False, timeout=0.1)
    connection.execute("PRAGMA synchronous = OFF")  # after a power cut it is made again
    # One process at a time: what is in a file is also kept in `files`.
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.executescript("BEGIN EXCLUSIVE; COMMIT;")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == 0:
        connection.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
    elif version != SCHEMA_VERSION:
        connection.close()
        raise sqlite3.DatabaseError(f"index of version {version}")
    return connection
