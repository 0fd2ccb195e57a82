"""A micro-batch: rows of packed tokens, and where the trained ones are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, device

from shoal.algorithms.runs import Spans


@dataclass
class MicroBatch:
    """R rows of L tokens that go through the model at once, holding whole completions only.

    `input_ids`, `position_ids`, `until` are [R, L] int64. Sequences that begin alike share those tokens, so a row holds
    trees, each laid out depth first: after a token come all that continue it, up to column `until` (exclusive). A
    query at column q may attend to a key at column k <= q of its row where until[k] > q. Padding stands at the end of
    a row and has until -1. Positions count along each path from its tree's first token. `plain` says that every row
    holds one sequence, so that causality alone is the whole mask; positions then run on through the padding.

    The tensors below are [N], one entry per trained token: `source` is the index into the flattened [R * L]
    positions whose hidden state predicts the token, `targets` its id. `sequence` and `token` say where each came from
    (index into the list that was packed, index among that sequence's sampled tokens), to put results back.
    `distinct` [D] are indices into the N, one for each distinct pair of source and target, and `entry` [N] says which
    of the D each token's pair is; both are None where too few are equal to be worth it. `temperature` is that of all
    its sequences, where they have one of their own. `spans` says what attends to what, for attention that takes it.
    """

    input_ids: Tensor
    position_ids: Tensor
    until: Tensor
    source: Tensor
    targets: Tensor
    sequence: Tensor
    token: Tensor
    plain: bool
    distinct: Tensor | None = None
    entry: Tensor | None = None
    temperature: float | None = None
    spans: Spans | None = None

    def to(self, where: device) -> MicroBatch:
        """On a device, without waiting for it."""
        spans = self.spans and replace(self.spans, **_moved(self.spans, where))
        return replace(self, spans=spans, **_moved(self, where))


def _moved(parts: Any, where: device) -> dict[str, Any]:
    """A dataclass's tensors on a device."""
    return {name: move(value, where) for name, value in vars(parts).items() if isinstance(value, Tensor)}


def move(tensor: Tensor, where: device) -> Tensor:
    """The tensor on a device. To a GPU it goes from pinned memory, so that nobody waits for what the GPU does."""
    if where.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(where, non_blocking=True)
    return tensor.to(where)
