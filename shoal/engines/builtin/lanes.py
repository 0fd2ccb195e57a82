"""Which completions share a lane of the KV cache: those of one prompt that have the same tokens so far."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Lanes(NamedTuple):
    """A new arrangement: `lanes` [R] of the completions, 0 for dead ones; lane sources[i] is to be copied to lane
    targets[i]; then the first `size` lanes are in use."""

    lanes: NDArray[np.int64]
    sources: NDArray[np.int64]
    targets: NDArray[np.int64]
    size: int


def fork(
    lanes: NDArray[np.int64],
    tokens: NDArray[np.int64],
    living: NDArray[np.bool_],
    size: int,
    *,
    multiple: int = 1,
    capacity: int,
) -> Lanes | None:
    """Parts completions of one lane whose newest tokens differ; None where there are none.

    The completions with a lane's least token keep it. The others get a copy: an idle lane of the first `size`, or one
    after these, whose number then grows to a multiple of `multiple` within `capacity`.

    Args:
        lanes: [R], of each completion.
        tokens: [R], the newest of each.
        living: [R], which completions go on.
    """
    rows = np.flatnonzero(living)
    rows = rows[np.lexsort((tokens[rows], lanes[rows]))]
    lane, token = lanes[rows], tokens[rows]
    starts = np.ones((2, len(rows)), dtype=bool)  # of a lane, and of a lane and a token
    starts[0, 1:] = lane[1:] != lane[:-1]
    starts[1, 1:] = starts[0, 1:] | (token[1:] != token[:-1])
    parting = starts[1] & ~starts[0]
    count = int(parting.sum())
    if not count:
        return None
    sources = lane[parting]
    idle = np.ones(size, dtype=bool)
    idle[lane] = False
    targets = np.flatnonzero(idle)[:count]
    beyond = count - len(targets)
    if beyond:
        grown = min(-(-(size + beyond) // multiple) * multiple, max(capacity, size + beyond))
        # Lanes that are not needed yet are computed too: they get a copy of something.
        sources = np.append(sources, np.full(grown - size - beyond, sources[0]))
        targets, size = np.append(targets, np.arange(size, grown)), grown
    owner = lane[starts[1]]
    owner[parting[starts[1]]] = targets[:count]
    arranged = np.zeros_like(lanes)
    arranged[rows] = owner[starts[1].cumsum() - 1]
    return Lanes(arranged, sources, targets, size)


def compact(lanes: NDArray[np.int64], living: NDArray[np.bool_], size: int, *, multiple: int = 1) -> Lanes:
    """Moves the last lanes into the places of idle ones; keeps as many as make up a multiple of `multiple`."""
    used = np.unique(lanes[living])
    count = len(used)
    sources = used[used >= count]
    free = np.ones(count, dtype=bool)
    free[used[used < count]] = False
    targets = np.flatnonzero(free)
    place = np.zeros(size, dtype=np.int64)
    place[used] = used
    place[sources] = targets
    return Lanes(np.where(living, place[lanes], 0), sources, targets, min(-(-count // multiple) * multiple, size))
