"""Reading request bodies: limits, gzip, deadlines, and a worker process for long ones.

Parsing 20 MB of JSON holds Python's lock for a tenth of a second, in which nobody else is answered. So what is longer
than `INLINE` is read in another process, and few such bodies are in memory at once.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import asynccontextmanager
from functools import partial
from logging import getLogger
from threading import Thread
from typing import Any

from msgspec.json import Decoder
from starlette.requests import Request
from starlette.types import Receive

from shoal.rollout_api.places import NoPlaceError, Place, Places, TooSlowError
from shoal.rollout_api.server.compression import CorruptError, TooLargeError, inflate
from shoal.rollout_api.server.intake import NewGroup, decode, read_groups

logger = getLogger(__name__)

INLINE = 256 * 1024
SMALL = 64 * 1024
PARSE_SECONDS = 120.0
LONG_AT_ONCE = 4


class BadRequestError(Exception):
    """A request that is answered with this status and reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(status, reason)  # both, so that it crosses from a worker process
        self.status = status
        self.reason = reason


class Bodies:
    """Reads bodies of at most `limit` bytes, before and after inflating."""

    def __init__(self, limit: int, *, drop_extra: bool) -> None:
        self.limit = limit
        self.drop_extra = drop_extra
        self.places = Places(LONG_AT_ONCE)
        self.pool: ProcessPoolExecutor | None = None

    async def message(self, request: Request, decoder: Decoder[Any]) -> Any:
        """A small message.

        Raises:
            BadRequestError, InvalidBodyError: it cannot be read, or says something else.
        """
        headers = request.headers
        return decode(_plain(await self._read(headers, request.receive, SMALL), _is_gzip(headers), SMALL), decoder)

    async def groups(
        self, headers: Mapping[str, str], receive: Receive, *, many: bool, peer: str = ""
    ) -> list[NewGroup]:
        """The groups in a post. `peer` is the address that it comes from.

        Raises:
            BadRequestError, InvalidBodyError: as above.
        """
        gzipped = _is_gzip(headers)
        if _announced(headers) <= INLINE:
            body = await self._read(headers, receive, INLINE)
            try:
                return read_groups(
                    _plain(body, gzipped, min(INLINE, self.limit)), many=many, drop_extra=self.drop_extra
                )
            except BadRequestError as error:
                if error.status != 413 or self.limit <= INLINE:
                    raise
            async with self._place(peer):
                return await self._in_worker(body, gzipped, many)
        async with self._place(peer) as place:
            return await self._in_worker(await self._read(headers, receive, self.limit, place), gzipped, many)

    @asynccontextmanager
    async def _place(self, peer: str) -> AsyncIterator[Place]:
        try:
            async with self.places.place(peer) as place:
                yield place
        except NoPlaceError as error:
            raise BadRequestError(503, "too many long bodies at once: send it again") from error

    async def _read(
        self, headers: Mapping[str, str], receive: Receive, limit: int, place: Place | None = None
    ) -> bytes:
        limit = min(limit, self.limit)
        if int(_length_header(headers) or 0) > limit:
            raise BadRequestError(413, f"the body has more than {limit} bytes")
        parts, more = [], True
        # A short body has no place to lose, but the same deadline.
        place = place or Place("", asyncio.get_running_loop().time())
        while more:
            try:
                async with place.reading():
                    message = await receive()
            except TooSlowError as error:
                raise BadRequestError(
                    408, f"the body came in too slowly: {place.received} bytes so far; send it again"
                ) from error
            if message["type"] == "http.disconnect":
                raise BadRequestError(400, "the client went away")
            parts.append(message.get("body", b""))
            place.received += len(parts[-1])
            more = message.get("more_body", False)
            if place.received > limit:
                raise BadRequestError(413, f"the body has more than {limit} bytes")
        return b"".join(parts)

    async def _in_worker(self, body: bytes, gzipped: bool, many: bool) -> list[NewGroup]:
        read = partial(read_body, body, gzipped, self.limit, many=many, drop_extra=self.drop_extra)
        try:
            async with asyncio.timeout(PARSE_SECONDS):
                return await asyncio.get_running_loop().run_in_executor(self._worker(), read)
        except BrokenProcessPool as error:
            logger.error("the process that reads long bodies died; the next one starts another")
            self.pool = None
            raise BadRequestError(503, "reading the body failed: send it again") from error
        except TimeoutError as error:
            raise BadRequestError(503, f"the body was not read within {PARSE_SECONDS:.0f} s: send it again") from error

    def _worker(self) -> ProcessPoolExecutor:
        if self.pool is None:
            # Spawned, not forked: this process has threads.
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(1, mp_context=context, initializer=_follow_parent)
        return self.pool

    def start_worker(self) -> None:
        """Starts the worker process now, so that the first long body does not wait for it."""
        self._worker().submit(read_groups, b"[]", many=True, drop_extra=False)

    def close(self) -> None:
        """Ends the worker process."""
        if self.pool:
            self.pool.shutdown(cancel_futures=True)


def read_body(body: bytes, gzipped: bool, limit: int, *, many: bool, drop_extra: bool) -> list[NewGroup]:
    """What the worker process does."""
    return read_groups(_plain(body, gzipped, limit), many=many, drop_extra=drop_extra)


def _plain(body: bytes, gzipped: bool, limit: int) -> bytes:
    if not gzipped:
        return body
    try:
        return inflate(body, limit)
    except TooLargeError as error:
        raise BadRequestError(413, str(error)) from error
    except CorruptError as error:
        raise BadRequestError(400, f"Invalid gzip payload: {error}") from error


def _is_gzip(headers: Mapping[str, str]) -> bool:
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "x-gzip", ""):
        raise BadRequestError(415, f"Content-Encoding {encoding!r} is not known here: gzip, or none")
    return "gzip" in encoding


def _announced(headers: Mapping[str, str]) -> int:
    """The announced length; a body of unknown length counts as long."""
    return int(_length_header(headers) or (INLINE + 1 if "transfer-encoding" in headers else 0))


def _length_header(headers: Mapping[str, str]) -> str:
    length = headers.get("content-length", "")
    return length if length.isdigit() else ""


def _follow_parent() -> None:
    """In the worker process: Ctrl-C is the parent's business, and a parent that was killed cannot end its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)
