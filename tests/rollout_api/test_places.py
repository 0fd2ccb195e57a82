"""Half-sent long posts do not keep others out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from api_server import group

from shoal.rollout_api import places
from shoal.rollout_api.places import Places
from shoal.rollout_api.server.bodies import LONG_AT_ONCE, BadRequestError, Bodies

LONG = {"content-length": str(10**6)}


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "HURRY", 0.05)


@pytest.fixture
def bodies() -> Iterator[Bodies]:
    made = Bodies(2 * 10**6, drop_extra=False)
    yield made
    made.close()


async def half_sent() -> dict[str, Any]:
    """A part, and then nothing: what `receive` gives of such a post."""
    await asyncio.sleep(3600)
    raise AssertionError


def sent(parts: list[bytes]) -> Any:
    left = list(parts)

    async def receive() -> dict[str, Any]:
        part = left.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(left)}

    return receive


@pytest.mark.parametrize("peer", ["the same", "another"])
def test_a_whole_long_post_is_taken_beside_many_half_sent_ones(bodies: Bodies, peer: str):
    body = json.dumps(group(40_000)).encode()

    async def run() -> None:
        dawdlers = [
            asyncio.create_task(bodies.groups(LONG, half_sent, many=False, peer="the same"))
            for _ in range(3 * LONG_AT_ONCE)
        ]
        await asyncio.sleep(0)
        headers = {"content-length": str(len(body))}
        taken = await bodies.groups(headers, sent([body[:1000], body[1000:]]), many=False, peer=peer)
        assert taken[0].size == 40_000
        for task in dawdlers:
            task.cancel()
        ended = await asyncio.gather(*dawdlers, return_exceptions=True)
        assert all(isinstance(one, BadRequestError | asyncio.CancelledError) for one in ended)
        assert all(one.status == 408 for one in ended if isinstance(one, BadRequestError))

    asyncio.run(asyncio.wait_for(run(), 25))  # before any of them would be given up by itself


def test_one_peer_never_has_all_places():
    async def run() -> None:
        found = Places(3)
        async with found.place("a"), found.place("a"):
            assert not found._has_room("a")
            async with found.place("b"):
                assert not found._has_room("c")

    asyncio.run(run())


def test_a_body_has_time_by_what_has_come_in(monkeypatch: pytest.MonkeyPatch, bodies: Bodies):
    monkeypatch.setattr(places, "PATIENCE", 0.1)
    parts = [b"x" * 100_000] * 10

    async def slowly() -> dict[str, Any]:
        await asyncio.sleep(0.02)  # ten of them take longer than the patience with one that sends nothing
        parts.pop()
        return {"type": "http.request", "body": b"x" * 100_000, "more_body": bool(parts)}

    async def run() -> None:
        assert len(await bodies._read({}, slowly, 2 * 10**6)) == 10**6
        with pytest.raises(BadRequestError, match="came in too slowly: 0 bytes so far"):
            await bodies._read({}, half_sent, 1000)

    asyncio.run(asyncio.wait_for(run(), 25))
