"""Gzip replies joined from segments, and bodies inflated up to a limit."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.rollout_api.server.compression import CorruptError, DeflatedSegment, TooLargeError, gzip_of, inflate


@given(st.lists(st.tuples(st.binary(max_size=200), st.booleans()), max_size=10))
def test_joined_pieces_are_one_gzip_member(parts):
    segments = [DeflatedSegment.of(plain) if deflate else DeflatedSegment.wrapped(plain) for plain, deflate in parts]
    joined = b"".join(gzip_of(segments))
    stream = zlib.decompressobj(31)
    assert stream.decompress(joined) == b"".join(plain for plain, _ in parts)
    assert stream.eof
    assert not stream.unused_data
    assert [segment.plain() for segment in segments] == [plain for plain, _ in parts]


def test_a_piece_longer_than_a_stored_block_is_whole():
    plain = bytes(range(256)) * 1000
    assert DeflatedSegment.wrapped(plain).plain() == plain
    assert (
        gzip.decompress(b"".join(gzip_of([DeflatedSegment.wrapped(plain), DeflatedSegment.of(plain)]))) == plain + plain
    )


def test_a_body_is_inflated_up_to_the_limit_and_no_further():
    body = gzip.compress(b"a" * 1000)
    assert inflate(body, 1000) == b"a" * 1000
    with pytest.raises(TooLargeError):
        inflate(body, 999)
    assert inflate(body + gzip.compress(b"b"), 1001) == b"a" * 1000 + b"b"
    with pytest.raises(TooLargeError):
        inflate(body + gzip.compress(b"b"), 1000)


@pytest.mark.parametrize(
    "body", [b"no gzip", gzip.compress(b"abc", mtime=0)[:-3], gzip.compress(b"abc", mtime=0) + b"tail", b"\x1f\x8b"]
)
def test_a_broken_body_is_told(body):
    with pytest.raises(CorruptError):
        inflate(body, 1000)
