"""Results on their way from a server to whoever asked it for a list of requests: lines of JSON, several at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import msgspec

# A chunk of a reply costs both ends more than a result does: what comes within this time goes together.
GATHER_SECONDS = 0.01


class Results:
    """The results of `count` requests. Made in an event loop; `put` and `fail` may be called in any one thread."""

    def __init__(self, count: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.left = count
        self.found: deque[dict[str, Any]] = deque()
        self.some = asyncio.Event()
        self.whole = asyncio.Event()
        self.error: BaseException | None = None

    def put(self, result: dict[str, Any]) -> None:
        """Takes in a result. Numbers in it that are not finite come out as null."""
        self.found.append(result)
        self.left -= 1
        if len(self.found) == 1:
            self.loop.call_soon_threadsafe(self.some.set)
        if self.left == 0:
            self.loop.call_soon_threadsafe(self.whole.set)

    def fail(self, error: BaseException) -> None:
        """Ends the wait for results that will not come."""
        self.error = error
        self.loop.call_soon_threadsafe(self.some.set)
        self.loop.call_soon_threadsafe(self.whole.set)

    async def chunks(self) -> AsyncIterator[list[dict[str, Any]]]:
        """All results, those that come at about the same time together. Raises what `fail` was given."""
        while self.left or self.found:
            await self.some.wait()
            if not self.whole.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.whole.wait(), GATHER_SECONDS)
            self.some.clear()
            chunk = []
            while self.found:  # until it is empty, or `put` would not tell of what comes meanwhile
                chunk.append(self.found.popleft())
            if chunk:
                yield chunk
            if self.error is not None:
                raise self.error


def to_lines(chunk: list[dict[str, Any]]) -> bytes:
    """Results as lines of JSON."""
    # What JSON does not know is a float of numpy's.
    return b"".join(msgspec.json.encode(result, enc_hook=float) + b"\n" for result in chunk)
