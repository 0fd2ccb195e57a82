"""All weights of a version in one file in memory, which processes on this machine map. The version stands first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from shoal.errors import EngineError
from shoal.wire.shared import ALIGNMENT
from shoal.wire.stream import WeightSpec, as_bytes
from shoal.wire.versions import UNKNOWN


def _places(specs: Sequence[WeightSpec]) -> Iterator[tuple[WeightSpec, int]]:
    """Where each weight begins, in bytes."""
    end = ALIGNMENT
    for spec in specs:
        yield spec, end
        end += -(-spec.nbytes // ALIGNMENT) * ALIGNMENT


def buffer_size(specs: Sequence[WeightSpec]) -> int:
    """Bytes of a buffer."""
    return ALIGNMENT + sum(-(-spec.nbytes // ALIGNMENT) * ALIGNMENT for spec in specs)


def _map(file: str | Path, specs: Sequence[WeightSpec]) -> Tensor:
    return torch.from_file(str(file), shared=True, size=buffer_size(specs), dtype=torch.uint8)


@torch.no_grad()
def write_buffer(file: Path, specs: Sequence[WeightSpec], weights: Iterable[tuple[str, Tensor]], version: int) -> None:
    """Writes the weights, in the order of `specs`. Until all are there the buffer holds no version."""
    if not file.exists():
        file.touch(mode=0o600)
    room = _map(file, specs)
    held = room[:8].view(torch.int64)
    held.fill_(UNKNOWN)
    for (spec, start), (name, weight) in zip(_places(specs), weights, strict=True):
        assert name == spec.name
        room[start : start + spec.nbytes].copy_(as_bytes(weight))
    held.fill_(version)


def read_buffer(file: str | Path, specs: Sequence[WeightSpec], version: int) -> Iterator[tuple[str, Tensor]]:
    """The weights by name, in the buffer's memory.

    Raises:
        EngineError: it is gone, or holds another version.
    """
    path = Path(file)
    if not path.is_file() or path.stat().st_size < buffer_size(specs):
        raise EngineError(f"the shared weights in {path} are gone: is the learner still running?")
    room = _map(path, specs)
    held = int(room[:8].view(torch.int64))
    if held != version:
        raise EngineError(f"the shared weights in {path} are of version {held}, not {version}")
    for spec, start in _places(specs):
        part = room[start : start + spec.nbytes]
        yield spec.name, part.view(getattr(torch, spec.dtype)).view(spec.shape)
