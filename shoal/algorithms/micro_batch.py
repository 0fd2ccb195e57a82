"""A micro-batch: rows of packed tokens, and where the trained ones are."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class MicroBatch:
    """R rows of L tokens that go through the model at once, holding whole completions only.

    `input_ids`, `position_ids`, `tree`, `branch` are [R, L] int64. A token may attend to an earlier one of the same
    row where both have the same `tree` and the earlier one's `branch` is 0 (the shared context) or the same. Padding
    has tree -1. Positions restart with each tree and continue from the context in each branch.

    The tensors below are [N], one entry per trained token: `source` is the index into the flattened [R * L]
    positions whose hidden state predicts the token, `targets` its id. `sequence` and `token` say where each came from
    (index into the list that was packed, index among that sequence's sampled tokens), to put results back.
    """

    input_ids: Tensor
    position_ids: Tensor
    tree: Tensor
    branch: Tensor
    source: Tensor
    targets: Tensor
    sequence: Tensor
    token: Tensor

    def to(self, device: str) -> MicroBatch:
        return MicroBatch(**{name: tensor.to(device) for name, tensor in vars(self).items()})
