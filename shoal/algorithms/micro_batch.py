"""A micro-batch: rows of packed tokens, and where the trained ones are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, device


@dataclass
class MicroBatch:
    """R rows of L tokens that go through the model at once, holding whole completions only.

    `input_ids`, `position_ids`, `tree`, `branch` are [R, L] int64. A token may attend to an earlier one of the same
    row where both have the same `tree` and the earlier one's `branch` is 0 (the shared context) or the same. Padding
    stands at the end of a row and has tree -1. Positions restart with each tree and continue from the context in each
    branch. `plain` says that every row holds one sequence, so that causality alone is the whole mask; positions then
    run on through the padding.

    The tensors below are [N], one entry per trained token: `source` is the index into the flattened [R * L]
    positions whose hidden state predicts the token, `targets` its id. `sequence` and `token` say where each came from
    (index into the list that was packed, index among that sequence's sampled tokens), to put results back.
    `temperature` is that of all its sequences, where they have one of their own.
    """

    input_ids: Tensor
    position_ids: Tensor
    tree: Tensor
    branch: Tensor
    source: Tensor
    targets: Tensor
    sequence: Tensor
    token: Tensor
    plain: bool
    temperature: float | None = None

    def to(self, where: device) -> MicroBatch:
        tensors: dict[str, Any] = {
            name: value.to(where) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **tensors)
