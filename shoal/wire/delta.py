"""Weights by what has changed in them: positions and values of each block of a weight, bit for bit.

A block whose elements have hardly changed is sent as the gaps between those that have, one of which many have as a
bitmap, and one that would take as many bytes as itself whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.wire.stream import WeightSpec, as_bytes

BLOCK = 2**20  # elements: what is compared, encoded and checked at once
NOTHING, GAPS_8, GAPS_16, BITMAP, WHOLE = range(5)  # how positions are written
WORD = 8  # bytes
COLUMNS = 4  # of the table in which the sender describes its pieces
BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
SIGNED = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

Bits = NDArray[Any]
"""Elements as unsigned integers: NaN and -0.0 are compared by their bits."""


@dataclass(frozen=True)
class Block:
    """Elements `start` to `stop` of a weight."""

    name: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def blocks_of(spec: WeightSpec) -> Iterator[Block]:
    """The blocks of a weight, in the order of the wire: the same at both ends."""
    size = prod(spec.shape)
    for start in range(0, size, BLOCK):
        yield Block(spec.name, start, min(start + BLOCK, size))


@dataclass(frozen=True)
class Piece:
    """A block on the wire. `checksum` is that of the whole block after the change; `values` come before `places`."""

    coding: int
    changed: int
    checksum: int
    values: Bits
    places: Bits

    @property
    def nbytes(self) -> int:
        return int(self.values.nbytes + self.places.nbytes)

    def row(self) -> list[int]:
        """Its line in the sender's table."""
        return [self.coding, self.changed, self.nbytes, self.checksum]

    def write(self, room: NDArray[np.uint8]) -> None:
        """Into `nbytes` bytes."""
        room[: self.values.nbytes] = self.values.view(np.uint8)
        room[self.values.nbytes :] = self.places.view(np.uint8)


NO_BITS: Bits = np.empty(0, dtype=np.uint8)


def encode(held: Bits, now: Bits) -> Piece:
    """What makes `held`, one block, equal to `now`; `held` is made so too. Where all of a block is sent, `values` are
    `held` itself, which has to stay as it is until then."""
    differ = held != now
    changed = int(np.count_nonzero(differ))
    checksum = checksum_of(now)
    if not changed:
        return Piece(NOTHING, 0, checksum, NO_BITS, NO_BITS)
    bitmap = -(-len(now) // 8)
    if changed * now.itemsize + bitmap >= now.nbytes:
        held[:] = now
        return Piece(WHOLE, changed, checksum, held, NO_BITS)
    places = np.flatnonzero(differ)
    values = now[places]
    held[places] = values
    coding, written = _write_places(places, bitmap)
    if coding == BITMAP:
        written = np.packbits(differ, bitorder="little")
    return Piece(coding, changed, checksum, values, written)


def _write_places(places: NDArray[np.int64], bitmap: int) -> tuple[int, Bits]:
    """Positions as gaps, the numbers of elements between two that have changed; or BITMAP, where its bytes are fewer.

    The largest number of a coding stands for so many elements of which none has changed: a gap may take several.
    """
    gaps = np.diff(places, prepend=-1) - 1
    wide = int(np.count_nonzero(gaps >= 255)) * 2 > len(gaps)
    coding, dtype, largest = (GAPS_16, np.uint16, 2**16 - 1) if wide else (GAPS_8, np.uint8, 2**8 - 1)
    overlong = np.flatnonzero(gaps >= largest)
    counts = np.ones(len(gaps), dtype=np.int64)
    counts[overlong] += gaps[overlong] // largest
    gaps[overlong] %= largest
    ends = np.cumsum(counts)
    if int(ends[-1]) * np.dtype(dtype).itemsize >= bitmap:
        return BITMAP, NO_BITS
    written = np.full(int(ends[-1]), largest, dtype=dtype)
    written[ends - 1] = gaps
    return coding, written


def read_places(coding: int, written: NDArray[np.uint8], size: int) -> NDArray[np.int64]:
    """The inverse: positions of the changed elements of a block of `size` elements."""
    if coding == BITMAP:
        return np.flatnonzero(np.unpackbits(written, count=size, bitorder="little"))
    gaps = written if coding == GAPS_8 else written.view(np.uint16)
    changed = gaps != np.iinfo(gaps.dtype).max
    return (np.cumsum(gaps.astype(np.int64) + changed) - 1)[changed]


def apply(block: Tensor, row: Sequence[int], piece: NDArray[np.uint8]) -> bool:
    """Changes a block, a vector of signed integers on any device, by a piece; whether it then is what the sender has.

    Args:
        row: The piece's line in the sender's table.
    """
    coding, changed, _, checksum = row
    bits = BITS[block.element_size()]
    if coding == WHOLE:
        block.copy_(torch.from_numpy(piece.view(bits).view(f"i{block.element_size()}")))
    elif coding != NOTHING:
        values = piece[: changed * block.element_size()].view(bits)
        places = read_places(coding, piece[values.nbytes :], len(block))
        if len(places) != changed or places[-1] >= len(block):
            return False
        if block.device.type == "cpu":
            block.numpy().view(bits)[places] = values
        else:
            moved = torch.from_numpy(values.view(f"i{block.element_size()}")).to(block.device)
            block[torch.from_numpy(places).to(block.device)] = moved
    return checksum_on(block) == checksum


def bits_of(tensor: Tensor) -> Bits:
    """A tensor's elements as a flat array in its own memory; a copy where it is not contiguous, or on another device
    than the CPU."""
    return as_bytes(tensor).cpu().numpy().view(BITS[tensor.element_size()])


def signed(tensor: Tensor) -> Tensor:
    """A contiguous tensor's own memory as a vector of integers."""
    return tensor.detach().view(-1).view(SIGNED[tensor.element_size()])


def checksum_of(block: Bits) -> int:
    """The sum of the block's words, each times an odd number of its place, modulo 2**64, as a signed number: any change
    of a single word is seen, others with next to certainty."""
    octets = block.view(np.uint8)
    whole = len(octets) // WORD
    words = octets[: whole * WORD].view(np.int64)
    return _add_rest(int(np.dot(words, _factors()[:whole])), octets[whole * WORD :].tobytes(), whole)


def checksum_on(block: Tensor) -> int:
    """`checksum_of` of a vector on any device."""
    if block.device.type == "cpu":
        return checksum_of(block.numpy())
    octets = block.view(torch.uint8)
    whole = len(octets) // WORD
    words = octets[: whole * WORD].view(torch.int64)
    found = int((words * _factors_on(block.device)[:whole]).sum())
    return _add_rest(found, octets[whole * WORD :].cpu().numpy().tobytes(), whole)


def _add_rest(found: int, rest: bytes, whole: int) -> int:
    """Adds the last word, of fewer bytes."""
    if rest:
        found += int.from_bytes(rest, "little") * int(_factors()[whole])
    return (found + 2**63) % 2**64 - 2**63


@cache
def _factors(count: int = BLOCK + 1) -> NDArray[np.int64]:
    """Odd numbers that look random: splitmix64 of the places (Steele, Lea and Flood 2014)."""
    x = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) | np.uint64(1)).view(np.int64)


@cache
def _factors_on(device: torch.device) -> Tensor:
    return torch.from_numpy(_factors()).to(device)
