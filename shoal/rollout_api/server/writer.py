"""Group commit: one thread, one transaction at a time, and all that arrives meanwhile shares the next one.

A hundred posts cost one sync. What is to be written is gathered in the event loop, and the thread is woken once for a
transaction; a caller is told after its commit is on the disk.
"""

from __future__ import annotations

import asyncio
import sqlite3
from asyncio import Future
from collections.abc import Callable
from logging import getLogger
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple, TypeVar

from shoal.rollout_api.server.rows import AT_ONCE, INCOMING, NewRow, insert_groups, last_id

logger = getLogger(__name__)

Result = TypeVar("Result")

JOBS_PER_COMMIT = 1024


class StoreError(Exception):
    """The store could not write: the disk is full, or failed. Nothing of the job is stored."""


class Entry(NamedTuple):
    """A job for the next transaction, or groups to insert in it."""

    future: Future[Any]
    job: Callable[[sqlite3.Connection], Any] | None
    rows: list[NewRow]


class Writer:
    """Owns the connection that writes. To be used from one event loop."""

    def __init__(self, connection: sqlite3.Connection, name: str) -> None:
        self.connection = connection
        self.name = name
        self.commits = 0
        self.failure: str | None = None
        self.last_id = last_id(connection)
        connection.executescript(INCOMING)
        self.waiting: list[Entry] = []
        self.busy = False
        self.lots: SimpleQueue[list[Entry] | None] = SimpleQueue()
        self.thread = Thread(target=self._run, name="store", daemon=True)
        self.thread.start()

    def submit(self, job: Callable[[sqlite3.Connection], Result]) -> Future[Result]:
        """Runs a job in the next transaction, in the order of the calls; its result when that is on the disk."""
        return self._add(job, [])

    def insert(self, rows: list[NewRow]) -> Future[list[int | None]]:
        """Stores groups, likewise; the id of each, None for one whose key was seen before."""
        return self._add(None, rows)

    def close(self) -> None:
        """Writes what waits and ends the thread."""
        self.lots.put(self.waiting)
        self.waiting = []
        self.lots.put(None)
        self.thread.join()

    def _add(self, job: Callable[[sqlite3.Connection], Any] | None, rows: list[NewRow]) -> Future[Any]:
        future = asyncio.get_running_loop().create_future()
        self.waiting.append(Entry(future, job, rows))
        if not self.busy:
            # Not at once: what else the loop has at hand comes along, and the thread finds Python's lock free.
            self.busy = True
            asyncio.get_running_loop().call_soon(self._start)
        return future

    def _start(self) -> None:
        lot, self.waiting = self.waiting[:JOBS_PER_COMMIT], self.waiting[JOBS_PER_COMMIT:]
        self.lots.put(lot)

    def _run(self) -> None:
        while (lot := self.lots.get()) is not None:
            if lot:
                results, failure = self._commit(lot)
                lot[0].future.get_loop().call_soon_threadsafe(self._finish, lot, results, failure)

    def _commit(self, lot: list[Entry]) -> tuple[list[Any], StoreError | None]:
        try:
            if all(entry.job is None for entry in lot) and sum(len(entry.rows) for entry in lot) <= AT_ONCE:
                results = self._write(lot)  # the groups go in by one statement, a transaction by itself
            else:
                self.connection.execute("BEGIN IMMEDIATE")
                results = self._write(lot)
                self.connection.execute("COMMIT")
        except sqlite3.Error as error:
            logger.error("the store %s cannot be written: %s", self.name, error)
            self.failure = str(error)
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            return [], StoreError(str(error))
        self.commits += 1
        self.failure = None
        return results, None

    def _write(self, lot: list[Entry]) -> list[Any]:
        """Neighbouring posts are inserted together: each statement costs a fight over Python's lock."""
        results: list[Any] = []
        posts: list[list[NewRow]] = []
        for _, job, rows in lot:
            if job is None:
                posts.append(rows)
            else:
                results += self._insert(posts)
                posts = []
                results.append(job(self.connection))
        return results + self._insert(posts)

    def _insert(self, posts: list[list[NewRow]]) -> list[list[int | None]]:
        ids = iter(insert_groups(self.connection, [row for rows in posts for row in rows], self.last_id))
        shares = [[next(ids) for _ in rows] for rows in posts]
        self.last_id = max((id_ for share in shares for id_ in share if id_), default=self.last_id)
        return shares

    def _finish(self, lot: list[Entry], results: list[Any], failure: StoreError | None) -> None:
        for index, entry in enumerate(lot):
            if entry.future.cancelled():
                continue
            if failure:
                entry.future.set_exception(failure)
            else:
                entry.future.set_result(results[index])
        self.busy = bool(self.waiting)
        if self.busy:
            self._start()
