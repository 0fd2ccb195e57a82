"""The writer: what waits shares a transaction, in order, and nobody is told of what is not on the disk."""

from __future__ import annotations

import asyncio
import json
import sqlite3

import pytest
from api_server import group

from shoal.rollout_api.server.intake import read_groups
from shoal.rollout_api.server.rows import AT_ONCE, NewRow
from shoal.rollout_api.server.store import Store
from shoal.rollout_api.server.writer import StoreError


def rows(*keys: str | None) -> list[NewRow]:
    bodies = [json.dumps(group(group_key=key)).encode() for key in keys]
    return [NewRow(read_groups(body, many=False, drop_extra=False)[0], 0, True) for body in bodies]


def count(connection: sqlite3.Connection) -> int:
    return connection.execute("SELECT count(*) FROM groups JOIN contents USING (id)").fetchone()[0]


def test_what_waits_shares_a_transaction_and_each_caller_gets_its_own_ids(tmp_path):
    async def scene() -> None:
        store = Store(tmp_path / "groups.sqlite")
        several = [
            store.insert(rows(None)),
            store.insert(rows("a", None)),
            store.insert(rows("a", "b", "b")),
            store.submit(count),
            store.insert(rows("a")),
            store.insert(rows(None)),
        ]
        assert await asyncio.gather(*several) == [[1], [2, 3], [None, 4, None], 4, [None], [5]]
        assert store.commits == 1
        assert await store.insert(rows("b", *[None] * AT_ONCE)) == [None, *range(6, 6 + AT_ONCE)]
        assert [len(segment.plain()) > 0 for segment in await store.contents([1, 5, 6], shrink=True)] == [True] * 3
        store.close()

    asyncio.run(scene())


def test_old_keys_that_cannot_be_forgotten_refuse_the_groups_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("shoal.rollout_api.server.rows.KEYS_KEPT", 20)

    async def scene() -> None:
        store = Store(tmp_path / "groups.sqlite")
        assert await store.insert(rows("a")) == [1]
        trigger = "CREATE TRIGGER stuck BEFORE DELETE ON keys BEGIN SELECT RAISE(ABORT, 'stuck'); END"
        await store.write(lambda connection: connection.execute(trigger))
        with pytest.raises(StoreError, match="stuck"):
            await store.insert(rows(*[None] * 30))
        assert await store.write(count) == 1, "what was refused is not stored"
        await store.write(lambda connection: connection.execute("DROP TRIGGER stuck"))
        assert await store.insert(rows(*[None] * 30)) == list(range(2, 32))
        store.close()

    asyncio.run(scene())


def test_ids_go_on_after_the_store_is_emptied_and_opened_again(tmp_path):
    async def scene() -> list[int | None]:
        store = Store(tmp_path / "groups.sqlite")
        ids = await store.insert(rows(None, None))
        await store.write(lambda connection: connection.execute("DELETE FROM groups"))
        store.close()
        return ids

    assert asyncio.run(scene()) == [1, 2]
    assert asyncio.run(scene()) == [3, 4]


def test_a_job_that_fails_takes_its_transaction_with_it_and_nothing_else(tmp_path):
    async def scene() -> None:
        store = Store(tmp_path / "groups.sqlite")
        assert await store.insert(rows("a")) == [1]
        together = [store.insert(rows("b")), store.submit(lambda connection: connection.execute("SELECT nothing"))]
        for future in together:
            with pytest.raises(StoreError):
                await future
        assert store.failure
        assert await store.write(count) == 1
        assert store.failure is None
        ids = await store.insert(rows("b"))
        assert ids[0] is not None, "its key is not taken for stored"
        store.close()

    asyncio.run(scene())


def test_what_waits_is_written_when_the_store_closes(tmp_path):
    async def scene() -> None:
        store = Store(tmp_path / "groups.sqlite")
        futures = [store.insert(rows(None)) for _ in range(5)]
        store.close()
        assert [ids for (ids,) in await asyncio.gather(*futures)] == [1, 2, 3, 4, 5]

    asyncio.run(scene())
