"""The durable half of the server: groups, leases, environments and the registration in one SQLite file.

`writer.py` has the one thread that writes, `rows.py` the SQL. Reads have their own connection, since WAL lets them run
beside the writer.
"""

from __future__ import annotations

import asyncio
import fcntl
import sqlite3
from asyncio import Future
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from logging import getLogger
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from msgspec import json as msgjson

from shoal.errors import ConfigError
from shoal.files import file_trouble
from shoal.rollout_api.server.compression import DeflatedSegment
from shoal.rollout_api.server.rows import CONTENT, LAYOUT, SCHEMA, LeaseRow, NewRow, segment_of
from shoal.rollout_api.server.writer import Writer

logger = getLogger(__name__)

Result = TypeVar("Result")


class GoneError(Exception):
    """What is asked for was removed meanwhile."""


class Saved(NamedTuple):
    """What a store holds at start. `groups` are (id, size, environment, version, lease), oldest first."""

    state: dict[str, Any] | None
    environments: list[dict[str, Any]]
    leases: list[LeaseRow]
    groups: list[tuple[int, int, int | None, int, int | None]]
    bytes: int
    latest: DeflatedSegment | None


class Store:
    """One file, one process: a second server on it is refused.

    Raises:
        ConfigError: the file is in use, is something else, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.name or path.is_dir():
            raise ConfigError(f"--store {path} is a folder: give the path of a file")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.lock = path.with_name(path.name + ".lock").open("w")
        except OSError as error:
            raise ConfigError(f"--store {path} cannot be made: {file_trouble(error) or error}") from error
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"--store {path}: another server uses it") from error
        try:
            self.connection = self._open()
            self.reading = self._connect()
            self.writer = Writer(self.connection, str(path))
        except sqlite3.Error as error:
            raise ConfigError(f"--store {path}: {error}; give the path of a new file") from error
        self.reader = ThreadPoolExecutor(1, "store-reader")

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=30)
        connection.execute("PRAGMA page_size = 8192")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        # Many builds of SQLite overwrite what is deleted with zeros: a batch would be written again when it ends.
        connection.execute("PRAGMA secure_delete = OFF")
        return connection

    def _open(self) -> sqlite3.Connection:
        connection = self._connect()
        (layout,) = connection.execute("PRAGMA user_version").fetchone()
        if layout == 0:
            connection.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {LAYOUT}; COMMIT;")
        elif layout != LAYOUT:
            raise ConfigError(f"--store {self.path}: written by another version of Shoal; give the path of a new file")
        return connection

    @property
    def commits(self) -> int:
        """Transactions so far."""
        return self.writer.commits

    @property
    def failure(self) -> str | None:
        """Why the last transaction failed, if it did."""
        return self.writer.failure

    def load(self) -> Saved:
        """What is in the file."""
        ask = self.reading.execute
        state = ask("SELECT row FROM state").fetchone()
        latest = ask(f"{CONTENT} ORDER BY id DESC LIMIT 1").fetchone()
        return Saved(
            state=msgjson.decode(state[0]) if state else None,
            environments=[msgjson.decode(row) for (row,) in ask("SELECT row FROM environments ORDER BY id")],
            leases=[LeaseRow(id_, *map(bool, flags)) for id_, *flags in ask("SELECT * FROM leases ORDER BY id")],
            groups=ask("SELECT id, size, env_id, version, lease FROM groups ORDER BY id").fetchall(),
            bytes=ask("SELECT coalesce(sum(bytes), 0) FROM groups").fetchone()[0],
            latest=segment_of(*latest) if latest else None,
        )

    async def write(self, job: Callable[[sqlite3.Connection], Result]) -> Result:
        """Runs a job in the writer's next transaction; returns its result when that is on the disk.

        Raises:
            StoreError: nothing was written.
        """
        # A client that goes away must not take back what will be written.
        return await asyncio.shield(self.submit(job))

    def submit(self, job: Callable[[sqlite3.Connection], Result]) -> Future[Result]:
        """As `write`, in the order of the calls, without waiting."""
        future = self.writer.submit(job)
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        return future

    def insert(self, rows: list[NewRow]) -> Future[list[int | None]]:
        """Stores groups, in the order of the calls; the id of each, None for one whose key was seen before."""
        return self.writer.insert(rows)

    async def contents(self, ids: list[int], *, shrink: bool) -> list[DeflatedSegment]:
        """The stored groups, in the order asked for; with `shrink` also those deflated that are stored plain.

        Raises:
            GoneError: one of them is no more.
        """
        return await asyncio.get_running_loop().run_in_executor(self.reader, self._contents, ids, shrink)

    def _contents(self, ids: list[int], shrink: bool) -> list[DeflatedSegment]:
        rows = [self.reading.execute(f"{CONTENT} WHERE id = ?", (id_,)).fetchone() for id_ in ids]
        if None in rows:
            raise GoneError("the batch was acknowledged, or the data reset, while it was read")
        return [segment_of(*row, shrink=shrink) for row in rows]

    def close(self) -> None:
        """Writes what waits, then closes the file."""
        self.writer.close()
        self.reader.shutdown()
        self.reading.close()
        self.connection.close()
        self.lock.close()
