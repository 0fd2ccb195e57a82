"""The few places for long bodies: they bound the memory, and whoever dawdles gives up the place when others wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

PATIENCE = 30.0
"""Seconds that a body may be behind `LEAST_RATE` while nobody waits for its place."""
HURRY = 2.0
"""The same while somebody does."""
LEAST_RATE = 128 * 1024
"""Bytes a second that a body has to come in with on average."""
PLACE_SECONDS = 30.0
LOOK_SECONDS = 0.1


class TooSlowError(Exception):
    """A body came in too slowly, and its place was needed or its time was over."""


class NoPlaceError(Exception):
    """All places stayed taken."""


@dataclass(eq=False)
class Place:
    """A place, and how the body that has it comes in. `deadline` is that of the reading under way."""

    peer: str
    since: float
    received: int = 0
    deadline: asyncio.Timeout | None = None

    def behind(self, now: float) -> float:
        """Seconds that the body is behind the least rate."""
        return now - self.since - self.received / LEAST_RATE

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """A context around the wait for one more part of the body.

        Raises:
            TooSlowError: it did not come in time, or another body needs the place.
        """
        try:
            now = asyncio.get_running_loop().time()
            async with asyncio.timeout_at(now + PATIENCE - self.behind(now)) as self.deadline:
                yield
        except TimeoutError as error:
            raise TooSlowError from error
        finally:
            self.deadline = None


class Places:
    """`count` places; one peer has all but one of them at most."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.taken: list[Place] = []
        self.freed = asyncio.Event()

    @asynccontextmanager
    async def place(self, peer: str) -> AsyncIterator[Place]:
        """Waits for a place and gives it back after.

        Raises:
            NoPlaceError: none became free in time.
        """
        loop = asyncio.get_running_loop()
        ends = loop.time() + PLACE_SECONDS
        while not self._has_room(peer):
            if loop.time() > ends:
                raise NoPlaceError
            self._hurry(peer)
            self.freed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self.freed.wait()
        place = Place(peer, loop.time())
        self.taken.append(place)
        try:
            yield place
        finally:
            self.taken.remove(place)
            self.freed.set()

    def _has_room(self, peer: str) -> bool:
        theirs = sum(place.peer == peer for place in self.taken)
        return len(self.taken) < self.count and theirs < max(self.count - 1, 1)

    def _hurry(self, peer: str) -> None:
        """Ends the reading of the body that is furthest behind, where one is far enough. Somebody who has used up their
        share waits for places of their own."""
        now = asyncio.get_running_loop().time()
        own = len(self.taken) < self.count
        slow = [
            place
            for place in self.taken
            if place.deadline is not None and place.behind(now) > HURRY and (place.peer == peer or not own)
        ]
        if slow:
            slowest = max(slow, key=lambda place: place.behind(now))
            assert slowest.deadline is not None
            slowest.deadline.reschedule(now)
            slowest.deadline = None
