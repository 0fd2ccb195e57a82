"""Attention of short packed sequences, block by block, for a CPU: the runs of columns that follow each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from shoal.algorithms.micro_batch import MicroBatch
from shoal.algorithms.runs import runs
from shoal.engines.builtin.fused_weights import ARCHITECTURES, windows
from shoal.runtime import Runtime

NAME = "sdpa_trees"
LONGEST = 256  # tokens of a sequence: whole rows of the scores are kept for the backward pass
BLOCKS = 32  # that go through one batched product, chosen of similar length


def use_tree_attention(causal_lm: Any, runtime: Runtime) -> None:
    """On a CPU, lets models of known layers take a `trees` argument, the layout of a micro-batch, instead of a mask.

    A mask over a whole row of packed sequences is mostly empty, and the kernel computes all of it. Without the
    argument nothing changes.
    """
    known = type(causal_lm).__name__ in ARCHITECTURES and type(causal_lm).__module__.startswith("transformers.models.")
    plain = causal_lm.config._attn_implementation == "sdpa"
    if runtime.device.type == "cpu" and known and plain and not any(windows(causal_lm)):
        causal_lm.config._attn_implementation = NAME


@dataclass
class _Blocks:
    """B blocks of up to L tokens that see up to P + L: their prefix, and themselves causally."""

    queries: NDArray[np.int64]  # [B, L], the tokens' places in the flattened rows
    keys: NDArray[np.int64]  # [B, P + L]
    alive: NDArray[np.bool_]  # [B, L]
    seen: NDArray[np.bool_]  # [B, L, P + L]


@dataclass
class _Part:
    """The same by attention head: rows of the flattened [tokens x heads, D] and the bias of the scores."""

    queries: Tensor  # [B x KV heads x L x G]
    keys: Tensor  # [B x KV heads x (P + L)]
    alive: Tensor  # [B, 1, L, 1, 1]
    bias: Tensor  # [B, 1, L, 1, P + L]
    batch: tuple[int, int, int]  # B x KV heads, L x G, P + L
    shape: tuple[int, ...]  # B, KV heads, L, G
    span: slice  # its places among all parts'


class TreeLayout:
    """The blocks of a micro-batch: its runs, and the prefix of each."""

    def __init__(self, batch: MicroBatch) -> None:
        found = runs(batch.until)
        self.tokens = batch.until.numel()
        starts, ends = (np.array(places) for places in ([run.start for run in found], [run.end for run in found]))
        prefixes = [run.prefix for run in found]
        lengths = ends - starts
        before = np.array([len(prefix) for prefix in prefixes])
        order = np.lexsort((before, lengths))
        self.blocks = [
            _blocks(starts[some], lengths[some], [prefixes[index] for index in some])
            for some in np.split(order, range(BLOCKS, len(order), BLOCKS))
        ]
        self._heads: dict[tuple[int, int, torch.dtype], tuple[list[_Part], Tensor]] = {}

    def parts(self, heads: int, kv_heads: int, dtype: torch.dtype) -> tuple[list[_Part], Tensor]:
        """The parts for so many heads; and for each [token, head] its place among all parts', one past the last for
        padding. Made once."""
        key = (heads, kv_heads, dtype)
        if key not in self._heads:
            self._heads[key] = self._by_head(*key)
        return self._heads[key]

    def _by_head(self, heads: int, kv_heads: int, dtype: torch.dtype) -> tuple[list[_Part], Tensor]:
        group = heads // kv_heads
        head = np.arange(heads).reshape(1, kv_heads, 1, group)
        total = heads * sum(blocks.queries.size for blocks in self.blocks)
        places = np.full(self.tokens * heads, total, dtype=np.int64)
        parts, start = [], 0
        for blocks in self.blocks:
            count, length = blocks.queries.shape
            queries = blocks.queries[:, None, :, None] * heads + head
            keys = blocks.keys[:, None] * kv_heads + np.arange(kv_heads)[:, None]
            span = slice(start, start + queries.size)
            alive = np.broadcast_to(blocks.alive[:, None, :, None], queries.shape)
            places[queries[alive]] = np.arange(span.start, span.stop).reshape(queries.shape)[alive]
            bias = torch.zeros(blocks.seen.shape, dtype=dtype)
            bias.masked_fill_(torch.from_numpy(~blocks.seen), -torch.inf)
            parts.append(
                _Part(
                    torch.from_numpy(queries.ravel()),
                    torch.from_numpy(keys.ravel()),
                    torch.from_numpy(blocks.alive)[:, None, :, None, None],
                    bias[:, None, :, None],
                    (count * kv_heads, length * group, keys.shape[-1]),
                    queries.shape,
                    span,
                )
            )
            start = span.stop
        return parts, torch.from_numpy(places)


def _blocks(starts: NDArray[np.int64], lengths: NDArray[np.int64], prefixes: Sequence[NDArray[np.int64]]) -> _Blocks:
    """Blocks from their first places and lengths, [B] each, and the places of each one's prefix."""
    prefix_lengths = np.array([len(prefix) for prefix in prefixes])
    own, before = np.arange(lengths.max()), np.arange(prefix_lengths.max())
    alive = own < lengths[:, None]
    queries = np.where(alive, starts[:, None] + own, 0)
    known = before < prefix_lengths[:, None]
    keys = np.zeros((len(starts), len(before) + len(own)), dtype=np.int64)
    keys[:, : len(before)][known] = np.concatenate(prefixes)
    keys[:, len(before) :] = queries
    causal = np.tri(len(own), dtype=bool)
    shape = (len(starts), len(own), len(before))
    seen = np.concatenate(
        [np.broadcast_to(known[:, None], shape), np.broadcast_to(causal, (*shape[:2], len(own)))], axis=2
    )
    return _Blocks(queries, keys, alive, seen)


class _TreeAttention(torch.autograd.Function):
    """softmax(scale Q K^T + bias) V of each block. With W the weights, O the result and g its gradient: dV = W^T g and
    dS = W (g V^T - sum(g O)), as in any attention."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: TreeLayout, scale: float) -> Tensor:
        rows, heads, width, size = query.shape
        parts, places = layout.parts(heads, key.shape[1], query.dtype)
        query, key, value = (x.transpose(1, 2).reshape(-1, size) for x in (query, key, value))
        mixed = query.new_zeros(parts[-1].span.stop + 1, size)
        taken: list[Tensor] = []
        for part in parts:
            n, new, seen = part.batch
            queries = query.index_select(0, part.queries).view(n, new, size)
            keys = key.index_select(0, part.keys).view(n, seen, size)
            values = value.index_select(0, part.keys).view(n, seen, size)
            scores = torch.bmm(queries, keys.transpose(1, 2))
            view = scores.view(*part.shape, seen)
            weights = torch.add(part.bias, view, alpha=scale, out=view).softmax(-1).view(n, new, seen)
            torch.bmm(weights, values, out=mixed[part.span].view(n, new, size))
            taken += [queries, keys, values, weights]
        # Not as attributes: gradient checkpointing drops, and a backward pass frees, what is saved this way alone.
        ctx.save_for_backward(mixed, *taken)
        ctx.parts, ctx.places = parts, places
        ctx.scale, ctx.shape = scale, (rows, width, heads, key.shape[0] // (rows * width), size)
        return mixed.index_select(0, places).view(rows, width, heads, size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, width, heads, kv_heads, size = ctx.shape
        grad = grad.reshape(-1, size)
        mixed, *saved = ctx.saved_tensors
        d_query = torch.empty_like(mixed)
        d_query[-1] = 0  # of padding
        d_key, d_value = grad.new_zeros((2, rows * width * kv_heads, size)).unbind()
        for index, part in enumerate(ctx.parts):
            queries, keys, values, weights = saved[4 * index : 4 * index + 4]
            n, new, _ = part.batch
            found = grad.index_select(0, part.queries)
            found.view(*part.shape, size).mul_(part.alive)
            found = found.view(n, new, size)
            d_value.index_add_(0, part.keys, torch.bmm(weights.transpose(1, 2), found).view(-1, size))
            mean = (found * mixed[part.span].view(n, new, size)).sum(-1, keepdim=True)
            d_scores = torch.bmm(found, values.transpose(1, 2)).sub_(mean).mul_(weights)
            torch.bmm(d_scores, keys, out=d_query[part.span].view(n, new, size))
            d_key.index_add_(0, part.keys, torch.bmm(d_scores.transpose(1, 2), queries).view(-1, size))
        d_query = d_query.index_select(0, ctx.places).mul_(ctx.scale)
        return (
            d_query.view(rows, width, heads, size).transpose(1, 2),
            d_key.mul_(ctx.scale).view(rows, width, kv_heads, size).transpose(1, 2),
            d_value.view(rows, width, kv_heads, size).transpose(1, 2),
            None,
            None,
        )


def tree_attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    trees: TreeLayout | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """[R, heads, L, D] and [R, KV heads, L, D] -> [R, L, heads, D], as Hugging Face calls its attention functions."""
    if trees is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    return _TreeAttention.apply(query, key, value, trees, scaling or query.shape[-1] ** -0.5), None


AttentionInterface.register(NAME, tree_attention_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)
