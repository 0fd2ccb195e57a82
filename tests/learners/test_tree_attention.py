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
from shoal.learners.cpu import tree_attention
from shoal.learners.cpu.tree_attention import LONGEST, NAME, TreeLayout, tree_attention_forward
from shoal.learners.passes import as_sequences
from shoal.types import Segment

HEADS, KV_HEADS, SIZE = 4, 2, 8


def micro_batch(share_prefix: bool, row: int) -> MicroBatch:
    """Three prompts of different lengths, in several rows. Their answers of 1 to 9 tokens part at the first, early,
    late, or not before one of them ends."""
    segments = []
    for number, context in enumerate((3, 1, 7)):
        ids = [10 * number + i for i in range(context)]
        answers = [list(range(length)) for length in (1, 9, 4, 2)]
        answers += [[0, 1, 2, 3, 4, 5, 6, 20, 21], [0, 1, 22, 23, 24], [0, 1, 22, 25, 26, 27], [28, 29, 30], [28]]
        segments += [Segment(ids, answer, [0.0] * len(answer), [True] * len(answer)) for answer in answers]
    (batch,) = pack(as_sequences(segments), micro_batch_tokens=1000, pack_length=row, share_prefix=share_prefix)
    return batch


def tensors(batch: MicroBatch) -> list[Tensor]:
    torch.manual_seed(0)
    rows, width = batch.until.shape
    return [
        torch.randn(rows, heads, width, SIZE, dtype=torch.float64, requires_grad=True)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]


def by_mask(batch: MicroBatch, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    repeats = HEADS // KV_HEADS
    key, value = (x.repeat_interleave(repeats, 1) for x in (key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=allowed(batch)).transpose(1, 2)


@pytest.mark.parametrize("blocks", [2, 32])
@pytest.mark.parametrize(("share_prefix", "row"), [(True, 20), (True, 1000), (False, 25)])
def test_values_and_gradients_are_those_under_the_mask(
    monkeypatch: pytest.MonkeyPatch, share_prefix: bool, row: int, blocks: int
):
    monkeypatch.setattr(tree_attention, "BLOCKS", blocks)
    batch = micro_batch(share_prefix, row)
    inputs = tensors(batch)
    real = (batch.until >= 0)[:, :, None, None]
    found, _ = tree_attention_forward(None, *inputs, None, trees=TreeLayout(batch))
    expected = by_mask(batch, *inputs)
    weight = torch.randn_like(expected) * real
    torch.testing.assert_close(found * real, expected * real)
    gradients = [torch.autograd.grad((out * weight).sum(), inputs) for out in (found, expected)]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_block_goes_on_to_the_end_of_a_sequence_and_sees_the_path_to_its_first_token():
    contexts = [1, 2], [1, 2], [1, 2], [7]
    answers = [3, 4, 5, 9], [3, 4, 6, 9], [8, 9], [8, 9]
    segments = [
        Segment(*pair, [0.0] * len(pair[1]), [True] * len(pair[1])) for pair in zip(contexts, answers, strict=True)
    ]
    (batch,) = pack(as_sequences(segments), micro_batch_tokens=100)
    # 1 2 3 4 5, then 6 after 1 2 3 4, then 8 after 1 2; and of another prompt 7 8. The shortest block comes first.
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 8, 7, 8]]
    (blocks,) = TreeLayout(batch).blocks
    queries = [row[alive].tolist() for row, alive in zip(blocks.queries, blocks.alive, strict=True)]
    assert queries == [[6], [5], [7, 8], [0, 1, 2, 3, 4]]
    keys = [row[seen].tolist() for row, seen in zip(blocks.keys, blocks.seen[:, 0], strict=True)]
    assert keys == [[0, 1, 6], [0, 1, 2, 3, 5], [7], [0]]


@pytest.mark.parametrize(("name", "by_trees"), [("qwen3", True), ("gpt2", False)])
def test_only_models_of_known_layers_take_it(make_learner: Callable[..., Any], name: str, by_trees: bool):
    assert (make_learner(name).passes.forward.attention == NAME) == by_trees


def test_longer_sequences_go_by_the_mask(make_learner: Callable[..., Any]):
    forward = make_learner().passes.forward
    batch = micro_batch(True, 1000)
    assert "trees" in forward.attention_inputs(batch)
    batch.position_ids += LONGEST
    assert "trees" not in forward.attention_inputs(batch)
