"""A decoder for the Llama family written out by hand: few operations, fused weights, no module calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shoal.engines.builtin.cache import KVCache, SharedPrompts
from shoal.engines.builtin.decode import Decoder
from shoal.engines.builtin.fused_weights import ACTIVATIONS, Layer, Weights, collect, windows


class FastDecoder(Decoder):
    """Computes what the module computes, on copies of its weights that are made at the first use after `refresh`.

    On a CPU with a compute dtype, the linear layers multiply in it and everything else, the head too, stays in
    float32; on a GPU attention and the head use it too. That is what the learner does. R rows of L tokens are held as
    [R * L, H]; queries of one KV head stand together, so that keys and values are never repeated.
    """

    def __init__(self, model: Any, compute_dtype: torch.dtype | None) -> None:
        self.causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.inner = self.causal_lm.model
        config = self.causal_lm.config
        attention = self.inner.layers[0].self_attn
        self.layers = config.num_hidden_layers
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.head_dim = attention.head_dim
        self.scaling = attention.scaling
        self.eps = config.rms_norm_eps
        self.activation = ACTIVATIONS[config.hidden_act]
        self.device = self.inner.embed_tokens.weight.device
        self.dtype = self.inner.embed_tokens.weight.dtype
        self.compute_dtype = compute_dtype or self.dtype
        self.attention_dtype = self.dtype if self.device.type == "cpu" else self.compute_dtype
        self.windows = windows(self.causal_lm)
        self.weights: Weights | None = None
        self.rotary: tuple[Tensor, Tensor] | None = None
        self.biases: dict[int, tuple[Tensor, Tensor | None]] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        with torch.inference_mode():
            yield
            self.biases = {}

    def refresh(self) -> None:
        self.weights = None

    def new_cache(self, capacity: int, columns: int) -> KVCache:
        return KVCache(self.layers, capacity, columns, self.device, fast=True, share=not any(self.windows))

    def forward(self, ids: Tensor, cache: KVCache, keep: int = 1) -> Tensor:
        length = ids.shape[1]
        attend_to = self._attend_one if length == 1 else self._attend

        def attend(query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
            keys, values = cache.buffers[layer].update(key, value)
            return attend_to(query, keys, values, cache, layer)

        logits = self._logits(ids, self._rotation(cache, length), attend, keep, self._current_weights())
        cache.end += length
        return logits

    def _current_weights(self) -> Weights:
        if self.weights is None:
            self.weights = collect(self.causal_lm, self.compute_dtype)
        return self.weights

    def _logits(
        self,
        ids: Tensor,
        rotation: tuple[Tensor, Tensor],
        attend: Callable[[Tensor, Tensor, Tensor, int], Tensor],
        keep: int,
        weights: Weights,
    ) -> Tensor:
        """Logits [R, keep, V] after ids [R, L]; `attend` takes queries [R, L, heads, D], keys and values
        [R, KV heads, L, D] and the layer's number."""
        rows, length = ids.shape
        hidden = F.embedding(ids, weights.embedding).view(rows * length, -1)
        if weights.embedding_scale is not None:
            hidden = hidden * weights.embedding_scale
        following = [*(layer.attention_norm for layer in weights.layers[1:]), weights.norm]
        x = rms_norm(hidden, weights.layers[0].attention_norm, self.eps)
        for index, (layer, norm) in enumerate(zip(weights.layers, following, strict=True)):
            mixed = attend(*self._project(layer, x, rows, *rotation), index)
            out = layer.out(mixed.reshape(rows * length, -1).to(self.dtype))
            hidden, x = self._add_norm(hidden, out, layer.mlp_norm)
            hidden, x = self._add_norm(hidden, layer.down(self._gated(layer.gate_up(x))), norm)
        return weights.logits(x.view(rows, length, -1)[:, -keep:])

    def _add_norm(self, hidden: Tensor, more: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
        """The sum, and its norm; `hidden` may be overwritten."""
        hidden += more
        return hidden, rms_norm(hidden, norm, self.eps)

    def _gated(self, gate_up: Tensor) -> Tensor:
        """[N, 2 F] -> [N, F]."""
        gate, up = gate_up.chunk(2, dim=-1)
        return self.activation(gate).mul_(up)

    def _project(self, layer: Layer, x: Tensor, rows: int, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [R, L, heads, D], keys and values [R, KV heads, L, D], rotated."""
        turned = self.heads + self.kv_heads
        heads = layer.qkv(x).view(rows, -1, turned + self.kv_heads, self.head_dim)
        turn = self._turned(heads[:, :, :turned], layer.head_norm, cos, sin)
        value = heads[:, :, turned:].to(self.attention_dtype)
        return turn[:, :, : self.heads], turn[:, :, self.heads :].transpose(1, 2), value.transpose(1, 2)

    def _turned(self, heads: Tensor, norm: Tensor | None, cos: Tensor, sin: Tensor) -> Tensor:
        """Normalised, where the model does so, and rotated."""
        if norm is not None:
            heads = rms_norm(heads, norm, self.eps)
        # rotate_half(x) * sin is roll(x) * sin with the sign in the table.
        return torch.addcmul(heads * cos, heads.roll(self.head_dim // 2, -1), sin).to(self.attention_dtype)

    def _attend_one(self, query: Tensor, keys: Tensor, values: Tensor, cache: KVCache, layer: int) -> Tensor:
        """Attention of one new token a row, [R, 1, heads, D] over [R, KV heads, T, D], as two batched products."""
        window = self.windows[layer]
        query = query.reshape(len(query) * self.kv_heads, -1, self.head_dim)
        if cache.shared is not None:
            return self._attend_shared(query, keys, values, cache, cache.shared, layer)
        columns = keys.shape[2]
        if window is not None and columns > window:
            keys, values, columns = keys[:, :, -window:], values[:, :, -window:], window
        bias = self._bias(cache)
        if bias is not None:
            bias = bias[:, :, cache.end + 1 - columns : cache.end + 1]
        scores = self._scores(query, keys, bias)
        return torch.bmm(self._softmax(scores), values.flatten(0, 1))

    def _scores(self, query: Tensor, keys: Tensor, bias: Tensor | None) -> Tensor:
        """[N, L, D] and [R, KV heads, T, D] with R * KV heads = N -> [N, L, T]; `bias` [N, 1, T] is added."""
        turned = keys.flatten(0, 1).transpose(1, 2)
        if bias is None:
            return torch.bmm(query, turned).mul_(self.scaling)
        return torch.baddbmm(bias, query, turned, alpha=self.scaling)

    def _softmax(self, scores: Tensor) -> Tensor:
        return scores.softmax(-1, dtype=torch.float32).to(self.attention_dtype)

    def _attend_shared(
        self, query: Tensor, keys: Tensor, values: Tensor, cache: KVCache, shared: SharedPrompts, layer: int
    ) -> Tensor:
        """The same where rows share prompts: one product for all queries of a prompt, and one for what came after."""
        new = shared.column - cache.low
        prompts = shared.prompts
        buffer = prompts.buffers[layer]
        prompt_scores = self._scores(self._to_slots(query, shared), buffer.keys, self._bias(prompts))
        scores = torch.cat(
            [self._from_slots(prompt_scores, shared), self._scores(query, keys[:, :, new:], None)], dim=-1
        )
        weights = self._softmax(scores)
        before, after = weights.split([prompts.end, weights.shape[-1] - prompts.end], dim=-1)
        mixed = torch.bmm(self._to_slots(before, shared), buffer.values.flatten(0, 1))
        return self._from_slots(mixed, shared).add_(torch.bmm(after, values[:, :, new:].flatten(0, 1)))

    def _to_slots(self, x: Tensor, shared: SharedPrompts) -> Tensor:
        """[R * KV heads, G, E] -> [P * KV heads, size * G, E]: the rows of a prompt side by side."""
        _, group, size = x.shape
        rows = x.reshape(-1, self.kv_heads * group * size)
        slots = rows.index_select(0, shared.rows).view(-1, shared.size, self.kv_heads, group, size)
        return slots.transpose(1, 2).reshape(-1, shared.size * group, size)

    def _from_slots(self, x: Tensor, shared: SharedPrompts) -> Tensor:
        """The inverse of `_to_slots`."""
        size, group = x.shape[-1], self.heads // self.kv_heads
        slots = x.view(-1, self.kv_heads, shared.size, group, size).transpose(1, 2)
        return slots.reshape(-1, self.kv_heads * group * size).index_select(0, shared.slots).view(-1, group, size)

    def _bias(self, cache: KVCache) -> Tensor | None:
        """[R * KV heads, 1, columns]: what hides the columns left of each row; None where all rows are full."""
        if id(cache) not in self.biases or self.biases[id(cache)][0] is not cache.starts:
            bias = None
            if bool((cache.starts > cache.low).any()):
                hidden = torch.arange(cache.columns, device=self.device) < cache.starts[:, None]
                bias = torch.zeros(hidden.shape, dtype=self.attention_dtype, device=self.device)
                bias = bias.masked_fill_(hidden, torch.finfo(self.attention_dtype).min)
                bias = bias.repeat_interleave(self.kv_heads, 0)[:, None]
            self.biases[id(cache)] = (cache.starts, bias)
        return self.biases[id(cache)][1]

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, cache: KVCache, layer: int) -> Tensor:
        """Attention of several new tokens a row, [R, L, heads, D] -> [R, L, heads, D]."""
        window = self.windows[layer]
        length = query.shape[1]
        columns = torch.arange(cache.low, cache.end + length, device=self.device)
        distance = columns[-length:, None] - columns
        seen = (distance >= 0) & (distance < window if window is not None else True)
        mask = torch.zeros(len(keys), 1, length, len(columns), dtype=query.dtype, device=self.device)
        # The lowest number, not minus infinity: positions left of a row see nothing, and their mean is no matter.
        mask.masked_fill_(~(seen & cache.visible(length)[:, None, None]), torch.finfo(query.dtype).min)
        repeats = self.heads // self.kv_heads
        mixed = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            keys.repeat_interleave(repeats, 1),
            values.repeat_interleave(repeats, 1),
            attn_mask=mask,
            scale=self.scaling,
        )
        return mixed.transpose(1, 2)

    def _rotation(self, cache: KVCache, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines [R, L, 1, D] for the next tokens' positions, by the module's own embedding."""
        self._make_tables(cache.columns)
        return self._rotated(cache.positions(length))

    def _make_tables(self, columns: int) -> None:
        """Sees to it that the tables have so many positions."""
        if self.rotary is None or len(self.rotary[0]) < columns:
            positions = torch.arange(2 * columns, device=self.device)
            cos, sin = self.inner.rotary_emb(torch.zeros((), dtype=self.dtype, device=self.device), positions[None])
            half = self.head_dim // 2
            self.rotary = cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)

    def _rotated(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        assert self.rotary is not None
        cos, sin = (F.embedding(positions, table)[:, :, None] for table in self.rotary)
        return cos, sin


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """w x / sqrt(mean(x^2) + eps) over the last dimension; on a CPU torch's own takes twice as many operations."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        if x.is_cuda and weight.dim() == 1 and weight.dtype == x.dtype:
            return F.rms_norm(x, x.shape[-1:], weight, eps)
        return F.rms_norm(x, x.shape[-1:], eps=eps) * weight
    scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    scale = scale.square_().mul_(1 / x.shape[-1]).add_(eps).rsqrt_()
    return (x * scale).mul_(weight)
