"""Runs of columns of packed rows, of which each token continues the one before it, and what they see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Run(NamedTuple):
    """Places `start` to `end` (exclusive) of the flattened rows, and those of the path to its first token."""

    start: int
    end: int
    prefix: NDArray[np.int64]


def runs(until: Tensor) -> list[Run]:
    """The runs of a micro-batch, by its `until` [R, L] on the CPU, in the order of their places. A run goes from where
    it leaves another to the end of its sequence; padding is in none."""
    rows, width = until.shape
    real = until.numpy().ravel() >= 0
    ends = (until + width * torch.arange(rows)[:, None]).numpy().ravel()
    follows = np.zeros(ends.size + 1, dtype=bool)  # whether a token continues the one before it
    follows[1:] = ends > np.arange(1, ends.size + 1)
    firsts = np.flatnonzero(real & ~follows[:-1])
    lasts = np.flatnonzero(real & ~follows[1:]) + 1
    found, path = [], firsts[:0]
    for start, end in zip(firsts.tolist(), lasts.tolist(), strict=True):
        path = path[ends[path] > start]
        found.append(Run(start, end, path))
        path = np.concatenate([path, np.arange(start, end)])
    return found


@dataclass(frozen=True)
class Spans:
    """The runs as kernels for sequences of several lengths take them.

    `queries` and `keys` [S + 1] int32 are the bounds of the runs, and of what they see, among the flattened places and
    among `places` [K], the places of the keys; None where these are all places in their order. A run sees its prefix,
    and itself causally.
    """

    queries: Tensor
    keys: Tensor
    longest_queries: int
    longest_keys: int
    places: Tensor | None


def spans(until: Tensor) -> Spans:
    """The spans of a micro-batch, by its `until` [R, L] on the CPU. Padding sees itself, and nothing looks at it."""
    whole: list[Run] = []
    none = np.zeros(0, dtype=np.int64)
    at = 0
    for run in [*runs(until), Run(until.numel(), until.numel(), none)]:
        if run.start > at:
            whole.append(Run(at, run.start, none))
        if run.end > run.start:
            whole.append(run)
        at = run.end
    own = np.array([run.end - run.start for run in whole])
    seen = own + np.array([len(run.prefix) for run in whole])
    places = None
    if (seen > own).any():
        parts = [part for run in whole for part in (run.prefix, np.arange(run.start, run.end))]
        places = torch.from_numpy(np.concatenate(parts))
    queries, keys = (torch.from_numpy(np.append(0, lengths.cumsum()).astype(np.int32)) for lengths in (own, seen))
    return Spans(queries, keys, int(own.max()), int(seen.max()), places)
