"""Attention by trees equals attention under the mask of the whole row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from shoal.algorithms.masks import allowed
from shoal.algorithms.micro_batch import MicroBatch
from shoal.algorithms.packing import pack
from shoal.learners import tree_attention
from shoal.learners.passes import as_sequences
from shoal.learners.tree_attention import LONGEST, NAME, TreeLayout, tree_attention_forward
from shoal.types import Segment

HEADS, KV_HEADS, SIZE = 4, 2, 8


def micro_batch(share_prefix: bool, row: int) -> MicroBatch:
    """Three prompts of different lengths with answers of 1 to 9 tokens, in several rows."""
    segments = []
    for number, context in enumerate((3, 1, 7)):
        ids = [10 * number + i for i in range(context)]
        segments += [Segment(ids, list(range(length)), [0.0] * length, [True] * length) for length in (1, 9, 4, 2)]
    (batch,) = pack(as_sequences(segments), micro_batch_tokens=1000, pack_length=row, share_prefix=share_prefix)
    return batch


def tensors(batch: MicroBatch) -> list[Tensor]:
    torch.manual_seed(0)
    rows, width = batch.tree.shape
    return [
        torch.randn(rows, heads, width, SIZE, dtype=torch.float64, requires_grad=True)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]


def by_mask(batch: MicroBatch, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    repeats = HEADS // KV_HEADS
    key, value = (x.repeat_interleave(repeats, 1) for x in (key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=allowed(batch)).transpose(1, 2)


@pytest.mark.parametrize("blocks", [2, 64])
@pytest.mark.parametrize(("share_prefix", "row"), [(True, 20), (True, 1000), (False, 25)])
def test_values_and_gradients_are_those_under_the_mask(
    monkeypatch: pytest.MonkeyPatch, share_prefix: bool, row: int, blocks: int
):
    monkeypatch.setattr(tree_attention, "BLOCKS", blocks)
    batch = micro_batch(share_prefix, row)
    inputs = tensors(batch)
    real = (batch.tree >= 0)[:, :, None, None]
    found, _ = tree_attention_forward(None, *inputs, None, trees=TreeLayout(batch))
    expected = by_mask(batch, *inputs)
    weight = torch.randn_like(expected) * real
    torch.testing.assert_close(found * real, expected * real)
    gradients = [torch.autograd.grad((out * weight).sum(), inputs) for out in (found, expected)]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(("name", "by_trees"), [("qwen3", True), ("gpt2", False)])
def test_only_models_of_known_layers_take_it(make_learner: Callable[..., Any], name: str, by_trees: bool):
    assert (make_learner(name).passes.forward.attention == NAME) == by_trees


def test_longer_sequences_go_by_the_mask(make_learner: Callable[..., Any]):
    forward = make_learner().passes.forward
    batch = micro_batch(True, 1000)
    assert "trees" in forward.attention_inputs(batch)
    batch.position_ids += LONGEST
    assert "trees" not in forward.attention_inputs(batch)
