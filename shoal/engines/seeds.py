"""Random numbers that depend on nothing but their seed and their index."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def sampling_seed(run_seed: int, prompt_id: str, epoch: int, sample_index: int, turn: int) -> int:
    """The seed of one completion's turn: 63 bits, the same on every machine, engine and batch layout."""
    # The id is written by its length, so that no two tuples give one text.
    text = f"{run_seed}/{len(prompt_id)}/{prompt_id}/{epoch}/{sample_index}/{turn}"
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def uniforms(seeds: NDArray[np.uint64], indices: NDArray[np.uint64]) -> NDArray[np.float64]:
    """One uniform number in [0, 1) for each (seed, index), a multiple of 2**-53.

    The index-th output of a SplitMix64 generator (Steele, Lea, Flood 2014) whose state is the mixed seed; mixing
    keeps neighbouring seeds from giving shifted copies of one stream.
    """
    state = _mix(seeds + GOLDEN) + (indices + np.uint64(1)) * GOLDEN
    return (_mix(state) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser; arrays of uint64 wrap around."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
