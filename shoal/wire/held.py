"""The receiver of deltas: the weights that they change, in the engine's own memory where that can be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.wire.delta import COLUMNS, Block, apply, blocks_of, signed
from shoal.wire.snapshot import HEAD, PACKET
from shoal.wire.stream import WeightGroup, WeightSpec, packets, padded
from shoal.wire.versions import UNKNOWN


@dataclass(frozen=True)
class Received:
    """What came of a delta: why it could not be used (empty: it could), and the weights that changed."""

    wrong: str = ""
    changed: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Sized:
    nbytes: int
    block: Block
    row: Sequence[int]


class HeldWeights:
    """The weights of `version`, which deltas lead on from.

    Args:
        specs: All weights.
        parameters: The engine's own, by name. One of the same shape and dtype is changed in place; of all others a copy
            is held, in memory of the CPU.
        threads: So many change blocks at once, while the next ones arrive.
    """

    def __init__(self, specs: Sequence[WeightSpec], parameters: Mapping[str, Tensor], threads: int) -> None:
        self.specs = specs
        self.version = UNKNOWN
        self.own: dict[str, Tensor] = {}
        self.copies: dict[str, Tensor] = {}
        for spec in specs:
            there = parameters.get(spec.name)
            if there is not None and spec.fits(there, there.device):
                self.own[spec.name] = there
            else:
                self.copies[spec.name] = torch.empty(spec.shape, dtype=getattr(torch, spec.dtype))
        self.flat = {name: signed(one) for name, one in {**self.own, **self.copies}.items()}
        self.writers = ThreadPoolExecutor(threads, thread_name_prefix="delta")

    def noting(self, weights: Iterable[tuple[str, Tensor]], version: int) -> Iterator[tuple[str, Tensor]]:
        """Passes all weights on to the engine, and copies those that it does not hold as they come."""
        self.version = UNKNOWN
        for name, weight in weights:
            if name in self.copies:
                self.copies[name].copy_(weight)
            yield name, weight
        self.version = version

    def take(self, group: WeightGroup, version: int, device: torch.device) -> Received:
        """Receives a delta, all of it whether it can be used or not, since others wait for it. Then this is `version`.

        Raises:
            RuntimeError: a peer was lost, or the deadline passed; the weights are a mixture.
        """
        parts = [block for spec in self.specs for block in blocks_of(spec)]
        table = torch.empty(8 * (HEAD + COLUMNS * len(parts)), dtype=torch.uint8, device=device)
        group.broadcast(table)
        numbers = table.cpu().view(torch.int64).tolist()
        (before, after), rows = (
            numbers[:HEAD],
            [numbers[at : at + COLUMNS] for at in range(HEAD, len(numbers), COLUMNS)],
        )
        wrong = ""
        if (before, after) != (self.version, version):
            wrong = f"it leads from version {before} to {after}, and version {self.version} is held"
        self.version = UNKNOWN
        pieces = [_Sized(row[2], block, row) for block, row in zip(parts, rows, strict=True)]
        still = [self.writers.submit(self._apply, piece, _NONE) for piece in pieces if not piece.nbytes and not wrong]
        failed = [found for future in still if (found := future.result())]
        rooms = [torch.empty(0, dtype=torch.uint8, device=device)] * 2
        being_read: list[list[Future[str]]] = [[], []]
        try:
            for number, packet in enumerate(packets((("", piece) for piece in pieces if piece.nbytes), PACKET)):
                turn = number % 2
                failed += [found for future in being_read[turn] if (found := future.result())]
                size = sum(padded(piece.nbytes) for _, piece in packet)
                if size > len(rooms[turn]):
                    rooms[turn] = torch.empty(max(size, PACKET), dtype=torch.uint8, device=device)
                room = rooms[turn][:size]
                group.broadcast(room)
                being_read[turn] = [] if wrong else self._begin(packet, room.cpu().numpy())
        finally:
            wait([future for futures in being_read for future in futures])  # nothing is written once this has returned
        failed += [found for futures in being_read for future in futures if (found := future.result())]
        changed = {piece.block.name for piece in pieces if piece.nbytes}
        self._count_writes(changed)
        if failed:
            wrong = f"{len(failed)} of {len(parts)} blocks do not have their checksum, such as {failed[0]}"
        if not wrong:
            self.version = version
        return Received(wrong, changed)

    def _begin(self, packet: Sequence[tuple[str, _Sized]], room: NDArray[np.uint8]) -> list[Future[str]]:
        futures, end = [], 0
        for _, piece in packet:
            futures.append(self.writers.submit(self._apply, piece, room[end : end + piece.nbytes]))
            end += padded(piece.nbytes)
        return futures

    def _apply(self, piece: _Sized, written: NDArray[np.uint8]) -> str:
        """Changes one block; what it is called where it then is not what the sender has, else nothing."""
        block = piece.block
        if apply(self.flat[block.name][block.start : block.stop], piece.row, written):
            return ""
        return f"{block.name}[{block.start}:{block.stop}]"

    @torch.no_grad()
    def _count_writes(self, names: Iterable[str]) -> None:
        """Written past torch, tensors do not count that they changed, by which copies in 16 bits know that they are
        old: an empty write counts."""
        for name in names:
            if name in self.own:
                self.own[name].detach().view(-1)[:0].zero_()

    def changed_copies(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Those of the named weights that the engine holds elsewhere, for it to take."""
        for name in sorted(names):
            if name in self.copies:
                yield name, self.copies[name]


_NONE: NDArray[np.uint8] = np.empty(0, dtype=np.uint8)
