"""The completions that are being decoded: one row each, as arrays, so that a step costs no Python per row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shoal.engines.base import EngineOutput, Request
from shoal.types import StopReason


@dataclass
class Running:
    """One completion's request, and the weight versions of its tokens so far."""

    request: Request
    limit: int
    versions: list[tuple[int, int]] = field(default_factory=list)

    def stamp(self, count: int, version: int) -> None:
        """Notes that tokens from index `count` on are of `version`."""
        if self.versions and self.versions[-1][0] == count:
            self.versions.pop()
        self.versions.append((count, version))


ARRAYS = "alive", "lanes", "seeds", "prompts", "counts", "limits", "tokens", "logprobs"


class Rows:
    """Tokens and log-probs of the completions, one row of every array each.

    `lanes` are their places in the KV cache: completions with equal tokens share one. `prompts`, `counts` and `limits`
    are the tokens of the prompt, sampled so far and allowed. A row whose completion ended is dead until it is dropped.
    """

    def __init__(self) -> None:
        self.running: list[Running] = []
        self.alive = np.zeros(0, dtype=bool)
        self.lanes = np.zeros(0, dtype=np.int64)
        self.seeds = np.zeros(0, dtype=np.uint64)
        self.prompts = np.zeros(0, dtype=np.int64)
        self.counts = np.zeros(0, dtype=np.int64)
        self.limits = np.zeros(0, dtype=np.int64)
        self.tokens = np.zeros((0, 0), dtype=np.int64)
        self.logprobs = np.zeros((0, 0), dtype=np.float32)

    def __len__(self) -> int:
        return len(self.running)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row in the KV cache: all but the newest, which is not fed yet."""
        return self.prompts + np.maximum(self.counts - 1, 0)

    @property
    def remaining(self) -> NDArray[np.int64]:
        """Tokens that each row may still sample; 0 for dead rows."""
        return np.where(self.alive, self.limits - self.counts, 0)

    @property
    def newest(self) -> NDArray[np.int64]:
        """The token that each row sampled last, [R]."""
        return self.tokens[np.arange(len(self)), self.counts - 1]

    def add(self, new: Sequence[Running], lanes: NDArray[np.int64]) -> None:
        self.running += new
        count = len(new)
        self.alive = np.append(self.alive, np.ones(count, dtype=bool))
        self.lanes = np.append(self.lanes, lanes)
        self.seeds = np.append(self.seeds, np.array([row.request.seed % 2**64 for row in new], dtype=np.uint64))
        self.prompts = np.append(self.prompts, [len(row.request.prompt_ids) for row in new])
        self.counts = np.append(self.counts, np.zeros(count, dtype=np.int64))
        self.limits = np.append(self.limits, [row.limit for row in new])
        wider = max(max(row.limit for row in new) - self.tokens.shape[1], 0)
        self.tokens = np.pad(self.tokens, ((0, count), (0, wider)))
        self.logprobs = np.pad(self.logprobs, ((0, count), (0, wider)))

    def record(self, first: int, tokens: NDArray[np.int64], logprobs: NDArray[np.float32]) -> None:
        """Adds one sampled token to each living row from `first` on."""
        living = first + np.flatnonzero(self.alive[first:])
        self.tokens[living, self.counts[living]] = tokens[living - first]
        self.logprobs[living, self.counts[living]] = logprobs[living - first]
        self.counts[living] += 1

    def finish(self, row: int, reason: StopReason) -> EngineOutput:
        """Ends a row."""
        self.alive[row] = False
        count = int(self.counts[row])
        running = self.running[row]
        return EngineOutput(
            request_id=running.request.id,
            token_ids=self.tokens[row, :count].tolist(),
            logprobs=self.logprobs[row, :count].tolist(),
            stop_reason=reason,
            versions=running.versions if count else [],
        )

    def compact(self) -> None:
        """Drops dead rows."""
        self.running = [self.running[row] for row in np.flatnonzero(self.alive)]
        kept = self.alive
        for name in ARRAYS:
            setattr(self, name, getattr(self, name)[kept])
