"""Gzip in both directions: bodies inflated up to a limit, and replies joined from pieces that were deflated before.

A group is deflated once, when it arrives, with a full flush at its end. Such pieces stand on their own, so a gzip reply
is their concatenation in one member (several members would be standard, but httpx and aiohttp read only the first).
The checksum of the whole comes from those of the pieces. What we deflate goes through ISA-L, four times as fast as
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
    pieces: list[bytes] = []
    left, rest = limit, body
    while rest:
        stream = zlib.decompressobj(16 + zlib.MAX_WBITS)
        try:
            # One byte more than may be, so that "exactly the limit" and "more" differ. 0 would mean no limit.
            piece = stream.decompress(rest, left + 1)
        except zlib.error as error:
            raise CorruptError(f"the body is no gzip: {error}") from error
        if len(piece) > left:
            raise TooLargeError(f"the body inflates to more than {limit} bytes")
        if not stream.eof:
            raise CorruptError("the gzip body ends too early")
        pieces.append(piece)
        left -= len(piece)
        rest = stream.unused_data
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


@dataclass(frozen=True)
class Piece:
    """Some bytes, deflated so that they can stand anywhere in a stream. `length` and `crc` are of the plain bytes."""

    deflated: bytes
    length: int
    crc: int

    @classmethod
    def of(cls, plain: bytes) -> Piece:
        """Deflated."""
        stream = isal_zlib.compressobj(LEVEL, isal_zlib.DEFLATED, -zlib.MAX_WBITS)
        deflated = stream.compress(plain) + stream.flush(isal_zlib.Z_FULL_FLUSH)
        return cls(deflated, len(plain), isal_zlib.crc32(plain))

    @classmethod
    def wrapped(cls, plain: bytes) -> Piece:
        """As it is, in blocks that are only stored: a header of five bytes each, and no work."""
        parts = []
        for start in range(0, len(plain), STORED_BLOCK):
            block = plain[start : start + STORED_BLOCK]
            parts += [b"\0", len(block).to_bytes(2, "little"), (len(block) ^ 0xFFFF).to_bytes(2, "little"), block]
        return cls(b"".join(parts), len(plain), isal_zlib.crc32(plain))

    def plain(self) -> bytes:
        """The bytes as they were."""
        return isal_zlib.decompressobj(-zlib.MAX_WBITS).decompress(self.deflated)


def gzip_of(pieces: Iterable[Piece]) -> list[bytes]:
    """One gzip member with the pieces' bytes one after the other, in parts."""
    parts, crc, length = [GZIP_HEADER], 0, 0
    for piece in pieces:
        parts.append(piece.deflated)
        crc = isal_zlib.crc32_combine(crc, piece.crc, piece.length)
        length += piece.length
    parts.append(LAST_BLOCK + crc.to_bytes(4, "little") + (length & 0xFFFFFFFF).to_bytes(4, "little"))
    return parts
