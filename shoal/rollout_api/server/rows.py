"""What is asked of the store's file, in SQL. Every function runs within the caller's transaction."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from sqlite3 import Connection
from typing import Any, NamedTuple

from msgspec import json as msgjson

from shoal.rollout_api.protocol import GroupInfo
from shoal.rollout_api.server.compression import DeflatedSegment
from shoal.rollout_api.server.intake import NewGroup

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
INCOMING = """
CREATE TEMP VIEW incoming AS SELECT groups.*, stored FROM groups JOIN contents USING (id);
CREATE TEMP TRIGGER incoming INSTEAD OF INSERT ON incoming BEGIN
  INSERT INTO keys SELECT new.key, new.id WHERE new.key IS NOT NULL;
  INSERT INTO groups VALUES (new.id, new.env_id, new.size, new.tokens, new.version, new.stamped, new.key, new.received,
    new.length, new.crc, new.bytes, new.lease);
  INSERT INTO contents VALUES (new.id, new.stored);
END;
"""
"""For the connection that writes: groups go to their three tables by one statement. Between two statements Python's
lock is taken, for which the event loop may let a thread wait milliseconds."""
CONTENT = "SELECT stored, length, crc FROM contents JOIN groups USING (id)"
KEYS_KEPT = 1_000_000
AT_ONCE = 128
"""Rows in one statement."""


class NewRow(NamedTuple):
    """A group that comes in. `stamped`: the version is the trainer's at arrival, not the group's own."""

    group: NewGroup
    version: int
    stamped: bool


class LeaseRow(NamedTuple):
    """A batch that was handed out and is not acknowledged. `sent`: whole to a client that asks for the next one;
    `counted`: it is part of `step` since the last registration."""

    id: int
    explicit: bool
    sent: bool
    counted: bool


def segment_of(stored: bytes, length: int, crc: int | None, *, shrink: bool = False) -> DeflatedSegment:
    """Content without a checksum is stored plain."""
    if crc is not None:
        return DeflatedSegment(stored, length, crc)
    return DeflatedSegment.of(stored) if shrink else DeflatedSegment.wrapped(stored)


def stored_size(content: DeflatedSegment | bytes) -> int:
    """The bytes that it takes in the store."""
    return len(_stored(content))


def last_id(connection: Connection) -> int:
    """The highest id that a group ever had."""
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'groups'").fetchone()
    return row[0] if row else 0


def insert_groups(connection: Connection, rows: list[NewRow], last: int) -> list[int | None]:
    """Stores groups under the ids after `last`; the id of each, None for one whose key was seen before."""
    seen = set(_known(connection, [row.group.key for row in rows if row.group.key is not None]))
    ids: list[int | None] = []
    new: list[tuple[int, NewRow]] = []
    for row in rows:
        key = row.group.key
        if key is None or key not in seen:
            new.append((last + 1 + len(new), row))
            ids.append(new[-1][0])
        else:
            ids.append(None)
        if key is not None:
            seen.add(key)
    # Before the groups: without a transaction around both, nothing may fail when they are stored.
    step = KEYS_KEPT // 10
    if last // step != (last + len(new)) // step:
        connection.execute("DELETE FROM keys WHERE id < ?", (last + len(new) - KEYS_KEPT,))
    now = time.time()
    for some in _parts(new):
        values = [value for id_, row in some for value in _values(id_, row, now)]
        marks = f"({_marks(len(values) // len(some))})"
        connection.execute(f"INSERT INTO incoming VALUES {','.join([marks] * len(some))}", values)
    return ids


def _known(connection: Connection, keys: list[str]) -> Iterator[str]:
    for some in _parts(keys):
        query = f"SELECT key FROM keys WHERE key IN ({_marks(len(some))})"
        yield from (key for (key,) in connection.execute(query, some))


def _values(id_: int, row: NewRow, now: float) -> tuple[Any, ...]:
    group, version, stamped = row
    content = group.content
    length, crc = (content.length, content.crc) if isinstance(content, DeflatedSegment) else (len(content), None)
    about = (group.env_id, group.size, group.tokens, version, stamped, group.key)
    stored = _stored(content)
    return (id_, *about, now, length, crc, len(stored), None, stored)


def _stored(content: DeflatedSegment | bytes) -> bytes:
    return content.deflated if isinstance(content, DeflatedSegment) else content


def _parts(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (rows[start : start + AT_ONCE] for start in range(0, len(rows), AT_ONCE))


def _marks(count: int) -> str:
    return ",".join("?" * count)


def delete_groups(connection: Connection, ids: Sequence[int]) -> int:
    """Removes groups; the bytes that they took."""
    freed = 0
    for some in _parts(ids):
        which = f"id IN ({_marks(len(some))})"
        freed += connection.execute(f"SELECT sum(bytes) FROM groups WHERE {which}", some).fetchone()[0] or 0
        connection.execute(f"DELETE FROM contents WHERE {which}", some)
        connection.execute(f"DELETE FROM groups WHERE {which}", some)
    return freed


def delete_lease(connection: Connection, lease: int) -> int:
    """Removes a lease and its groups; the bytes that they took."""
    ids = [id_ for (id_,) in connection.execute("SELECT id FROM groups WHERE lease = ?", (lease,))]
    connection.execute("DELETE FROM leases WHERE id = ?", (lease,))
    return delete_groups(connection, ids)


def save_lease(connection: Connection, lease: LeaseRow) -> None:
    """Writes a lease that is handed out, for the first time or again."""
    connection.execute("INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?)", lease)


def lease_groups(connection: Connection, lease: int, ids: Sequence[int]) -> None:
    """Notes that groups are part of a lease."""
    for some in _parts(ids):
        connection.execute(f"UPDATE groups SET lease = ? WHERE id IN ({_marks(len(some))})", [lease, *some])


def update_lease(connection: Connection, lease: LeaseRow) -> None:
    """Changes a lease, unless it was acknowledged meanwhile."""
    id_, *values = lease
    connection.execute("UPDATE leases SET explicit = ?, sent = ?, counted = ? WHERE id = ?", [*values, id_])


def infos_of(connection: Connection, ids: Iterable[int]) -> list[GroupInfo]:
    """What a batch's reply tells of each group."""
    query = "SELECT id, key, env_id, version, stamped, received FROM groups WHERE id = ?"
    rows = (connection.execute(query, (id_,)).fetchone() for id_ in ids)
    return [
        GroupInfo(id=id_, key=key, env_id=env, weights_version=version, stamped=bool(stamped), received=received)
        for id_, key, env, version, stamped, received in rows
    ]


def save_state(connection: Connection, state: Any) -> None:
    """The one row of state, as JSON."""
    connection.execute("INSERT OR REPLACE INTO state VALUES (0, ?)", (msgjson.encode(state).decode(),))


def save_environment(connection: Connection, env_id: int, row: Any) -> None:
    """An environment, as JSON."""
    connection.execute("INSERT OR REPLACE INTO environments VALUES (?, ?)", (env_id, msgjson.encode(row).decode()))


def empty(connection: Connection) -> None:
    """Removes everything but the highest id, so that no id comes twice."""
    for table in ("groups", "contents", "keys", "leases", "environments", "state"):
        connection.execute(f"DELETE FROM {table}")
