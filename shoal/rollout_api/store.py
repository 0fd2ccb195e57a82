"""The durable half of the server: groups, leases, environments and the registration in one SQLite file.

One thread writes. It takes all jobs that wait, runs them in one transaction, and tells the callers after the commit is
on the disk: a hundred posts cost one sync. Reads have their own connection, since WAL lets them run beside the writer.
"""

from __future__ import annotations

import asyncio
import fcntl
import sqlite3
import time
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from logging import getLogger
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, NamedTuple, TypeVar

from msgspec import json as msgjson

from shoal.errors import ConfigError
from shoal.rollout_api.compression import Piece
from shoal.rollout_api.intake import NewGroup
from shoal.rollout_api.protocol import GroupInfo

logger = getLogger(__name__)

Result = TypeVar("Result")

LAYOUT = 1
SCHEMA = """
CREATE TABLE groups (id INTEGER PRIMARY KEY AUTOINCREMENT, env_id INTEGER, size INTEGER, tokens INTEGER,
  version INTEGER, stamped INTEGER, key TEXT, received REAL, length INTEGER, crc INTEGER, bytes INTEGER, lease INTEGER);
CREATE INDEX groups_by_lease ON groups (lease) WHERE lease IS NOT NULL;
CREATE TABLE contents (id INTEGER PRIMARY KEY, stored BLOB);
CREATE TABLE keys (key TEXT PRIMARY KEY, id INTEGER) WITHOUT ROWID;
CREATE TABLE leases (id INTEGER PRIMARY KEY, explicit INTEGER, sent INTEGER, counted INTEGER);
CREATE TABLE environments (id INTEGER PRIMARY KEY, row TEXT);
CREATE TABLE state (id INTEGER PRIMARY KEY, row TEXT);
"""
CONTENT = "SELECT stored, length, crc FROM contents JOIN groups USING (id)"
KEYS_KEPT = 1_000_000
JOBS_PER_COMMIT = 1024


class StoreError(Exception):
    """The store could not write: the disk is full, or failed. Nothing of the job is stored."""


class GoneError(Exception):
    """What is asked for was removed meanwhile."""


class LeaseRow(NamedTuple):
    """A batch that was handed out and is not acknowledged. `sent`: whole to a client that asks for the next one;
    `counted`: it is part of `step` since the last registration."""

    id: int
    explicit: bool
    sent: bool
    counted: bool


class Saved(NamedTuple):
    """What a store holds at start. `groups` are (id, size, environment, version, lease), oldest first."""

    state: dict[str, Any] | None
    environments: list[dict[str, Any]]
    leases: list[LeaseRow]
    groups: list[tuple[int, int, int | None, int, int | None]]
    bytes: int
    latest: Piece | None


class Store:
    """One file, one process: a second server on it is refused.

    Raises:
        ConfigError: the file is in use, is something else, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.lock = path.with_name(path.name + ".lock").open("w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"--store {path}: another server uses it") from error
        try:
            self.connection = self._open()
            self.reading = self._connect()
        except sqlite3.Error as error:
            raise ConfigError(f"--store {path}: {error}; give the path of a new file") from error
        self.jobs: SimpleQueue[tuple[Callable[[sqlite3.Connection], Any], AbstractEventLoop, Future[Any]] | None]
        self.jobs = SimpleQueue()
        self.commits = 0
        self.failure: str | None = None
        self.writer = Thread(target=self._write, name="store", daemon=True)
        self.writer.start()
        self.reader = ThreadPoolExecutor(1, "store-reader")

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=30)
        connection.execute("PRAGMA page_size = 8192")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def _open(self) -> sqlite3.Connection:
        connection = self._connect()
        (layout,) = connection.execute("PRAGMA user_version").fetchone()
        if layout == 0:
            connection.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {LAYOUT}; COMMIT;")
        elif layout != LAYOUT:
            raise ConfigError(f"--store {self.path}: written by another version of Shoal; give the path of a new file")
        return connection

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
            latest=_piece(*latest) if latest else None,
        )

    async def write(self, job: Callable[[sqlite3.Connection], Result]) -> Result:
        """Runs a job in the writer's next transaction; returns its result when that is on the disk.

        Raises:
            StoreError: nothing was written.
        """
        future = self.submit(job)
        # A client that goes away must not take back what will be written.
        return await asyncio.shield(future)

    def submit(self, job: Callable[[sqlite3.Connection], Result]) -> Future[Result]:
        """As `write`, in the order of the calls, without waiting."""
        loop = asyncio.get_running_loop()
        future: Future[Result] = loop.create_future()
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        self.jobs.put((job, loop, future))
        return future

    async def contents(self, ids: list[int], *, shrink: bool) -> list[Piece]:
        """The stored groups, in the order asked for; with `shrink` also those deflated that are stored plain.

        Raises:
            GoneError: one of them is no more.
        """
        return await asyncio.get_running_loop().run_in_executor(self.reader, self._contents, ids, shrink)

    def _contents(self, ids: list[int], shrink: bool) -> list[Piece]:
        rows = [self.reading.execute(f"{CONTENT} WHERE id = ?", (id_,)).fetchone() for id_ in ids]
        if None in rows:
            raise GoneError("the batch was acknowledged, or the data reset, while it was read")
        return [_piece(*row, shrink=shrink) for row in rows]

    def _write(self) -> None:
        while True:
            waiting = [self.jobs.get()]
            try:
                while len(waiting) < JOBS_PER_COMMIT:
                    waiting.append(self.jobs.get_nowait())
            except Empty:
                pass
            jobs = [job for job in waiting if job is not None]
            if jobs:
                self._commit(jobs)
            if len(jobs) < len(waiting):
                return

    def _commit(self, jobs: list[tuple[Callable[[sqlite3.Connection], Any], AbstractEventLoop, Future[Any]]]) -> None:
        results: list[Any] = []
        failure: StoreError | None = None
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            results = [job(self.connection) for job, _, _ in jobs]
            self.connection.execute("COMMIT")
            self.commits += 1
            self.failure = None
        except sqlite3.Error as error:
            logger.error("the store %s cannot be written: %s", self.path, error)
            failure, self.failure = StoreError(str(error)), str(error)
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
        futures = [future for _, _, future in jobs]
        jobs[0][1].call_soon_threadsafe(_tell, futures, results, failure)

    def close(self) -> None:
        """Writes what waits, then closes the file."""
        self.jobs.put(None)
        self.writer.join()
        self.reader.shutdown()
        self.reading.close()
        self.connection.close()
        self.lock.close()


def _tell(futures: list[Future[Any]], results: list[Any], failure: StoreError | None) -> None:
    for index, future in enumerate(futures):
        if future.cancelled():
            continue
        if failure:
            future.set_exception(failure)
        else:
            future.set_result(results[index])


def _piece(stored: bytes, length: int, crc: int | None, *, shrink: bool = False) -> Piece:
    """Content without a checksum is stored plain."""
    if crc is not None:
        return Piece(stored, length, crc)
    return Piece.of(stored) if shrink else Piece.wrapped(stored)


def stored_size(content: Piece | bytes) -> int:
    """The bytes that it takes in the store."""
    return len(content.deflated if isinstance(content, Piece) else content)


def insert_groups(groups: Iterable[tuple[NewGroup, int, bool]]) -> Callable[[sqlite3.Connection], list[int | None]]:
    """A job: (group, version, stamped) in; the id of each, None for one whose key was seen before."""
    rows = list(groups)

    def job(connection: sqlite3.Connection) -> list[int | None]:
        ids: list[int | None] = []
        for group, version, stamped in rows:
            if group.key is not None:
                new = connection.execute("INSERT OR IGNORE INTO keys VALUES (?, NULL)", (group.key,)).rowcount
                if not new:
                    ids.append(None)
                    continue
            content = group.content
            stored = content.deflated if isinstance(content, Piece) else content
            cursor = connection.execute(
                "INSERT INTO groups (env_id, size, tokens, version, stamped, key, received, length, crc, bytes)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    group.env_id,
                    group.size,
                    group.tokens,
                    version,
                    stamped,
                    group.key,
                    time.time(),
                    content.length if isinstance(content, Piece) else len(content),
                    content.crc if isinstance(content, Piece) else None,
                    len(stored),
                ),
            )
            id_ = cursor.lastrowid
            assert id_ is not None
            connection.execute("INSERT INTO contents VALUES (?, ?)", (id_, stored))
            if group.key is not None:
                connection.execute("UPDATE keys SET id = ? WHERE key = ?", (id_, group.key))
            if id_ % (KEYS_KEPT // 10) == 0:
                connection.execute("DELETE FROM keys WHERE id < ?", (id_ - KEYS_KEPT,))
            ids.append(id_)
        return ids

    return job


def delete_groups(connection: sqlite3.Connection, ids: Iterable[int]) -> int:
    """Removes groups; the bytes that they took."""
    rows = [(id_,) for id_ in ids]
    freed = sum(connection.execute("SELECT bytes FROM groups WHERE id = ?", row).fetchone()[0] for row in rows)
    connection.executemany("DELETE FROM contents WHERE id = ?", rows)
    connection.executemany("DELETE FROM groups WHERE id = ?", rows)
    return freed


def delete_lease(connection: sqlite3.Connection, lease: int) -> int:
    """Removes a lease and its groups; the bytes that they took."""
    ids = [id_ for (id_,) in connection.execute("SELECT id FROM groups WHERE lease = ?", (lease,))]
    connection.execute("DELETE FROM leases WHERE id = ?", (lease,))
    return delete_groups(connection, ids)


def save_lease(connection: sqlite3.Connection, lease: LeaseRow) -> None:
    """Writes a lease that is handed out, for the first time or again."""
    connection.execute("INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?)", lease)


def update_lease(connection: sqlite3.Connection, lease: LeaseRow) -> None:
    """Changes a lease, unless it was acknowledged meanwhile."""
    id_, *values = lease
    connection.execute("UPDATE leases SET explicit = ?, sent = ?, counted = ? WHERE id = ?", [*values, id_])


def infos_of(connection: sqlite3.Connection, ids: Iterable[int]) -> list[GroupInfo]:
    """What a batch's reply tells of each group."""
    query = "SELECT id, key, env_id, version, stamped, received FROM groups WHERE id = ?"
    rows = (connection.execute(query, (id_,)).fetchone() for id_ in ids)
    return [
        GroupInfo(id=id_, key=key, env_id=env, weights_version=version, stamped=bool(stamped), received=received)
        for id_, key, env, version, stamped, received in rows
    ]


def save_state(connection: sqlite3.Connection, state: Any) -> None:
    """The one row of state, as JSON."""
    connection.execute("INSERT OR REPLACE INTO state VALUES (0, ?)", (msgjson.encode(state).decode(),))


def save_environment(connection: sqlite3.Connection, env_id: int, row: Any) -> None:
    """An environment, as JSON."""
    connection.execute("INSERT OR REPLACE INTO environments VALUES (?, ?)", (env_id, msgjson.encode(row).decode()))


def empty(connection: sqlite3.Connection) -> None:
    """Removes everything but the highest id, so that no id comes twice."""
    for table in ("groups", "contents", "keys", "leases", "environments", "state"):
        connection.execute(f"DELETE FROM {table}")
