"""Gzip in both directions: bodies inflated up to a limit, and replies joined from segments that were deflated before.

A group is deflated once, when it arrives, with a full flush at its end. Segments are independent, so a gzip reply
is their concatenation in one member (several members would be standard, but httpx and aiohttp read only the first).
The checksum of the whole comes from those of the segments. What we deflate goes through ISA-L, four times as fast as
zlib; what strangers deflated is read by zlib.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from isal import isal_zlib

GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
LAST_BLOCK = b"\x03\x00"
LEVEL = 2
STORED_BLOCK = 0xFFFF


class TooLargeError(Exception):
    """The body inflates to more than the limit."""


class CorruptError(Exception):
    """The body is no gzip, or ends too early."""


def inflate(body: bytes, limit: int) -> bytes:
    """The content of a gzip body of one or more members, never held beyond `limit` bytes.

    Raises:
        TooLargeError, CorruptError: as they say.
    """
    segments: list[bytes] = []
    left, rest = limit, body
    while rest:
        stream = zlib.decompressobj(16 + zlib.MAX_WBITS)
        try:
            # One byte more than may be, so that "exactly the limit" and "more" differ. 0 would mean no limit.
            segment = stream.decompress(rest, left + 1)
        except zlib.error as error:
            raise CorruptError(f"the body is no gzip: {error}") from error
        if len(segment) > left:
            raise TooLargeError(f"the body inflates to more than {limit} bytes")
        if not stream.eof:
            raise CorruptError("the gzip body ends too early")
        segments.append(segment)
        left -= len(segment)
        rest = stream.unused_data
    return segments[0] if len(segments) == 1 else b"".join(segments)


@dataclass(frozen=True)
class DeflatedSegment:
    """A deflate segment that can be placed anywhere in a stream. `length` and `crc` describe the uncompressed bytes."""

    deflated: bytes
    length: int
    crc: int

    @classmethod
    def of(cls, plain: bytes) -> DeflatedSegment:
        """Compresses `plain` into a standalone deflate segment."""
        stream = isal_zlib.compressobj(LEVEL, isal_zlib.DEFLATED, -zlib.MAX_WBITS)
        deflated = stream.compress(plain) + stream.flush(isal_zlib.Z_FULL_FLUSH)
        return cls(deflated, len(plain), isal_zlib.crc32(plain))

    @classmethod
    def wrapped(cls, plain: bytes) -> DeflatedSegment:
        """Wraps `plain` in stored deflate blocks without compressing it: five bytes of header per block."""
        parts = []
        for start in range(0, len(plain), STORED_BLOCK):
            block = plain[start : start + STORED_BLOCK]
            parts += [b"\0", len(block).to_bytes(2, "little"), (len(block) ^ 0xFFFF).to_bytes(2, "little"), block]
        return cls(b"".join(parts), len(plain), isal_zlib.crc32(plain))

    def plain(self) -> bytes:
        """The uncompressed bytes."""
        return isal_zlib.decompressobj(-zlib.MAX_WBITS).decompress(self.deflated)


def gzip_of(segments: Iterable[DeflatedSegment]) -> list[bytes]:
    """One gzip member with the segments' bytes one after the other, in parts."""
    parts, crc, length = [GZIP_HEADER], 0, 0
    for segment in segments:
        parts.append(segment.deflated)
        crc = isal_zlib.crc32_combine(crc, segment.crc, segment.length)
        length += segment.length
    parts.append(LAST_BLOCK + crc.to_bytes(4, "little") + (length & 0xFFFFFFFF).to_bytes(4, "little"))
    return parts
