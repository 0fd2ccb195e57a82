"""The sender of deltas: a copy of what was last sent, in the dtype of the wire, and what differs from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from shoal.wire.delta import BITS, Bits, Piece, bits_of, blocks_of, encode
from shoal.wire.stream import WeightGroup, WeightSpec, packets, padded
from shoal.wire.versions import UNKNOWN

PACKET = 2**22  # bytes: pieces are packed into packets of at most so many
HEAD = 2  # numbers before the table: the versions that a delta leads from and to


@dataclass(frozen=True)
class DeltaSize:
    """A delta from version `before` to `after`: elements of all weights, how many changed, and bytes on the wire."""

    before: int
    after: int
    elements: int
    changed: int
    nbytes: int

    @property
    def changed_share(self) -> float:
        return self.changed / max(self.elements, 1)


class Snapshot:
    """Held by whoever sends the weights, in memory of the CPU. Weights are read by `threads` threads."""

    def __init__(self, specs: Sequence[WeightSpec], threads: int) -> None:
        self.specs = specs
        self.version = UNKNOWN
        self.held: dict[str, Bits] = {}
        self.pieces: list[Piece] = []
        self.size: DeltaSize | None = None
        self.readers = ThreadPoolExecutor(threads, thread_name_prefix="weights")

    def noting(self, weights: Iterable[tuple[str, Tensor]], version: int) -> Iterator[tuple[str, Tensor]]:
        """Passes all weights on, and copies each while it is sent."""
        self._forget()
        for spec, (name, weight) in zip(self.specs, weights, strict=True):
            assert name == spec.name
            copying = self.readers.submit(self._copy, spec, weight)
            yield name, weight
            copying.result()
        self.version = version

    def _copy(self, spec: WeightSpec, weight: Tensor) -> None:
        room = self.held.get(spec.name)
        if room is None:
            room = self.held[spec.name] = np.empty(prod(spec.shape), dtype=BITS[weight.element_size()])
        room[:] = bits_of(weight)

    def compare(self, weights: Iterable[tuple[str, Tensor]], version: int) -> DeltaSize:
        """Finds what has changed, and keeps it for `send_delta`. The snapshot then is of `version`.

        Each weight has been read before the next is asked for. Where there is no snapshot yet, `before` is UNKNOWN, and
        nothing is compared.
        """
        before = self.version
        if before == UNKNOWN:
            return DeltaSize(UNKNOWN, version, 0, 0, 0)
        self._forget()
        pieces: list[Piece] = []
        for spec, (name, weight) in zip(self.specs, weights, strict=True):
            assert name == spec.name
            held, now = self.held[name], bits_of(weight)
            found: list[Future[Piece]] = [
                self.readers.submit(encode, held[one.start : one.stop], now[one.start : one.stop])
                for one in blocks_of(spec)
            ]
            pieces += [future.result() for future in found]
        self.pieces, self.version = pieces, version
        elements = sum(array.size for array in self.held.values())
        changed = sum(piece.changed for piece in pieces)
        table = 8 * (HEAD + 4 * len(pieces))
        self.size = DeltaSize(before, version, elements, changed, table + sum(padded(piece.nbytes) for piece in pieces))
        return self.size

    def _forget(self) -> None:
        """Until all weights have been read, this is no version's snapshot."""
        self.version, self.pieces, self.size = UNKNOWN, [], None

    @torch.no_grad()
    def send_delta(self, group: WeightGroup, device: torch.device) -> None:
        """Broadcasts what `compare` found.

        Raises:
            RuntimeError: nothing was compared, a peer was lost, or the deadline passed.
        """
        if self.size is None:
            raise RuntimeError("no delta was made ready")
        numbers = [self.size.before, self.size.after, *(number for piece in self.pieces for number in piece.row())]
        group.broadcast(torch.tensor(numbers, dtype=torch.int64).view(torch.uint8).to(device))
        room = np.empty(PACKET, dtype=np.uint8)
        for packet in packets((("", piece) for piece in self.pieces if piece.nbytes), PACKET):
            size = sum(padded(piece.nbytes) for _, piece in packet)
            if size > len(room):
                room = np.empty(size, dtype=np.uint8)
            end = 0
            for _, piece in packet:
                piece.write(room[end : end + piece.nbytes])
                end += padded(piece.nbytes)
            group.broadcast(torch.from_numpy(room[:size]).to(device))
        self.pieces, self.size = [], None

    def close(self) -> None:
        """Ends the threads."""
        self.readers.shutdown()
