"""Attention of packed rows on a GPU by torch's own flash kernel, which is told where the runs of a row lie."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from shoal.algorithms.runs import Spans
from shoal.runtime import Runtime

NAME = "varlen"


def use_varlen_attention(causal_lm: Any, runtime: Runtime) -> None:
    """Where the runtime asks for it, lets a model whose attention is exchangeable take a `spans` argument, the layout
    of a micro-batch, instead of a mask. Without the argument nothing changes."""
    config = causal_lm.config.get_text_config()
    if runtime.attention == NAME and config._attn_implementation == "sdpa":
        config._attn_implementation = NAME


def varlen_attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    spans: Spans | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """[R, heads, L, D] and [R, KV heads, L, D] -> [R, L, heads, D], as Hugging Face calls its attention functions.

    Raises:
        TypeError: an argument that the kernel has no counterpart of.
    """
    if spans is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    for name in ("s_aux", "softcap"):
        if kwargs.get(name) is not None:
            raise TypeError(f"the varlen kernel has no {name}")
    rows, heads, width, size = query.shape
    query, key, value = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    if spans.places is not None:
        key, value = key.index_select(0, spans.places), value.index_select(0, spans.places)
    # Normalised queries and keys may have float32 weights; the kernel wants all three alike.
    mixed = attend(query.to(value.dtype), key.to(value.dtype), value, spans, scaling or size**-0.5, sliding_window)
    return mixed.view(rows, width, heads, size), None


def attend(query: Tensor, key: Tensor, value: Tensor, spans: Spans, scale: float, window: int | None) -> Tensor:
    """[T, heads, D] over [K, KV heads, D] twice -> [T, heads, D]; the last key of a span is its last query's own."""
    repeats = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeats, 1) if repeats > 1 else x for x in (key, value))
    if query.device.type != "cuda":
        return _span_by_span(query, key, value, spans, scale, window)
    # Not at the top: importing it takes seconds with some versions of torch, and only a GPU needs it.
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415

    bounds = spans.queries, spans.keys, spans.longest_queries, spans.longest_keys
    left = -1 if window is None else window - 1
    mixed: Any = varlen_attn(query, key, value, *bounds, scale=scale, window_size=(left, 0))
    return mixed


def _span_by_span(query: Tensor, key: Tensor, value: Tensor, spans: Spans, scale: float, window: int | None) -> Tensor:
    """The same without the kernel: what it is held to."""
    mixed = []
    bounds = spans.queries.tolist(), spans.keys.tolist()
    for number in range(len(bounds[0]) - 1):
        (first, last), (low, high) = (one[number : number + 2] for one in bounds)
        queries = torch.arange(last - first, device=query.device)[:, None] + (high - low) - (last - first)
        distance = queries - torch.arange(high - low, device=query.device)
        mask = (distance >= 0) & (distance < (high if window is None else window))
        own = query[first:last].transpose(0, 1)
        keys, values = (x[low:high].transpose(0, 1) for x in (key, value))
        mixed.append(F.scaled_dot_product_attention(own, keys, values, attn_mask=mask, scale=scale).transpose(0, 1))
    return torch.cat(mixed)


AttentionInterface.register(NAME, varlen_attention_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)
