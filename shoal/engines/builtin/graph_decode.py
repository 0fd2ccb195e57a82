"""Decoding on CUDA without a word from Python between tokens: a step, sampling included, is one graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from logging import getLogger
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shoal.algorithms.fused import can_compile, fused
from shoal.algorithms.precision import widest_float
from shoal.engines.base import SamplingParams
from shoal.engines.builtin.cache import KVCache
from shoal.engines.builtin.fast_decode import FastDecoder
from shoal.engines.builtin.sampling import RowSampling, sample

logger = getLogger(__name__)

KEPT = 2**28  # bytes of a cache that is kept, with its graphs, for the next rollouts
AT_ONCE = 16  # steps between two looks at what was sampled; a completion that ends between them wastes the rest


class GraphDecoder(FastDecoder):
    """The fast decoder, whose steps of one token a lane also run ahead, several at a time (`steps`).

    A step's kernels take microseconds and its calls from Python ten times as long, so it is recorded once for each
    number of lanes and replayed. Attention is our kernel or torch's flash kernel for sequences of several lengths; both
    read no column that a lane does not use. Graphs read the cache's and the weights' own memory: they are gone with
    either. On a CPU steps are computed as they come, to test them by.
    """

    at_once = AT_ONCE

    def __init__(self, model: Any, compute_dtype: torch.dtype | None, kernel: Any = None) -> None:
        """`kernel` is the module of `decode_kernel`, in the place of torch's flash kernel."""
        super().__init__(model, compute_dtype)
        self.kernel = kernel
        self.warm: set[tuple[int, bool]] = set()  # whose kernels are made
        self.spare: KVCache | None = None
        self._forget()

    def _forget(self) -> None:
        self.place: list[Tensor] = []  # the keys that the graphs were recorded for
        self.recorded: dict[tuple[int, bool], Steps] = {}
        # A pool whose graphs are all gone cannot be used again.
        self.pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None

    def refresh(self) -> None:
        super().refresh()
        self._forget()

    def new_cache(self, capacity: int, columns: int) -> KVCache:
        return KVCache(self.layers, capacity, columns, self.device, by_columns=True)

    def lane_cache(self, capacity: int, columns: int) -> KVCache:
        spare, self.spare = self.spare, None
        if spare is not None and capacity <= spare.capacity and columns <= spare.columns:
            spare.clear()
            return spare
        self._forget()
        return self.new_cache(capacity, columns)

    def release(self, cache: KVCache | None) -> None:
        self.spare = cache if cache is not None and cache.nbytes <= KEPT else None
        if self.spare is None:
            self._forget()

    def _add_norm(self, hidden: Tensor, more: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
        return add_norm(hidden, more, norm, self.eps)

    def _gated(self, gate_up: Tensor) -> Tensor:
        return gated(gate_up, self.activation)

    def _turned(self, heads: Tensor, norm: Tensor | None, cos: Tensor, sin: Tensor) -> Tensor:
        return turned(heads, norm, self.eps, cos, sin).to(self.attention_dtype)

    def steps(
        self, newest: Tensor, uniforms: Tensor, sampling: Sequence[SamplingParams], cache: KVCache
    ) -> tuple[Tensor, Tensor]:
        """Feeds each of R lanes its newest token, samples one more, feeds that one, and so on.

        Args:
            newest: [R] ids, on the CPU.
            uniforms: [S, R] in [0, 1), with S up to `at_once`.
            sampling: Of each lane.
            cache: Has room for S columns.

        Returns:
            What was sampled, [S, R] ids, and log-probs [S, R] float32.
        """
        weights = self._current_weights()
        self._make_tables(cache.columns)
        if len(self.place) != len(cache.buffers) or any(
            layer.keys is not keys for layer, keys in zip(cache.buffers, self.place, strict=True)
        ):
            self._forget()
            self.place = [layer.keys for layer in cache.buffers]
        filtered = any(one.truncated for one in sampling)
        key = (cache.rows, filtered)
        if key not in self.recorded:
            steps = Steps(cache.rows, self.device, filtered)
            steps.record(lambda: self._step(steps, cache, weights), key not in self.warm, self.pool)
            self.warm.add(key)
            self.recorded[key] = steps
        steps = self.recorded[key]
        steps.set(newest, uniforms, sampling, cache)
        for _ in range(len(uniforms)):
            steps.replay()
        cache.end += len(uniforms)
        return steps.tokens[: len(uniforms)], steps.logprobs[: len(uniforms)]

    def _step(self, steps: Steps, cache: KVCache, weights: Any) -> None:
        """One step, on nothing but the device's own numbers."""
        slots = steps.offsets + steps.lengths
        ends = torch.cat([steps.offsets, steps.offsets[-1:] + cache.columns]).int()
        used = (steps.lengths + 1).int()

        def attend(query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
            keys, values = (
                whole.transpose(1, 2).flatten(0, 1)
                for whole in (cache.buffers[layer].keys, cache.buffers[layer].values)
            )
            keys.index_copy_(0, slots, key[:, :, 0])
            values.index_copy_(0, slots, value[:, :, 0])
            bounds = steps.bounds, ends, used
            where = bounds, cache.columns, self.scaling, self.windows[layer]
            return attention(query[:, 0], keys, values, *where, self.kernel)

        logits = self._logits(steps.ids, self._rotated(steps.lengths[:, None]), attend, 1, weights)[:, -1]
        tokens, logprobs = sample(logits, steps.uniforms.index_select(0, steps.at)[0], steps.sampling)
        steps.tokens.index_copy_(0, steps.at, tokens[None])
        steps.logprobs.index_copy_(0, steps.at, logprobs[None])
        steps.ids.copy_(tokens[:, None])
        steps.lengths += 1
        steps.at += 1


@fused
def add_norm(hidden: Tensor, more: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum, and its RMSNorm."""
    hidden = hidden + more
    return hidden, F.rms_norm(hidden, hidden.shape[-1:], eps=eps) * weight


@fused
def gated(gate_up: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """[N, 2 F] -> [N, F]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return activation(gate) * up


@fused
def turned(heads: Tensor, norm: Tensor | None, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads [R, L, heads, D] normalised and rotated."""
    if norm is not None:
        heads = F.rms_norm(heads, heads.shape[-1:], eps=eps) * norm
    return heads * cos + heads.roll(heads.shape[-1] // 2, -1) * sin


class Steps:
    """What a step of R lanes reads and writes, in memory that stays where it is.

    A lane's tokens in the flattened cache are `lengths` from `offsets` on. `at` counts the steps since `set`.
    """

    def __init__(self, rows: int, device: torch.device, filtered: bool) -> None:
        wide = widest_float(device)
        self.ids = torch.zeros((rows, 1), dtype=torch.long, device=device)
        self.lengths, self.offsets = torch.zeros((2, rows), dtype=torch.long, device=device).unbind()
        self.at = torch.zeros(1, dtype=torch.long, device=device)
        self.uniforms = torch.zeros((AT_ONCE, rows), dtype=wide, device=device)
        self.tokens = torch.zeros((AT_ONCE, rows), dtype=torch.long, device=device)
        self.logprobs = torch.zeros((AT_ONCE, rows), dtype=torch.float32, device=device)
        self.bounds = torch.arange(rows + 1, dtype=torch.int32, device=device)
        self.sampling = RowSampling(
            temperature=torch.ones((rows, 1), device=device),
            greedy=torch.zeros(rows, dtype=torch.bool, device=device),
            filtered=torch.arange(rows, device=device) if filtered else None,
            top_k=torch.zeros((rows, 1), dtype=torch.long, device=device) if filtered else None,
            top_p=torch.ones((rows, 1), device=device) if filtered else None,
        )
        self.replay: Callable[[], None]

    def record(self, step: Callable[[], None], warm_up: bool, pool: Any) -> None:
        """Makes `replay` from a step: a graph on CUDA, whose memory between its kernels is of `pool`; elsewhere the
        step itself."""
        if self.ids.device.type != "cuda":
            self.replay = step
            return
        if warm_up:
            # So that libraries set themselves up; what it writes is written again by the first replay.
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                step()
            torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            step()
        self.replay = graph.replay

    def set(self, newest: Tensor, uniforms: Tensor, sampling: Sequence[SamplingParams], cache: KVCache) -> None:
        """Where the steps begin. `newest` [R] and `uniforms` [S, R] may be on the CPU."""
        self.ids.copy_(newest[:, None])
        self.offsets.copy_(cache.starts + cache.columns * torch.arange(cache.rows, device=cache.device))
        self.lengths.copy_(cache.end - cache.starts)
        self.uniforms[: len(uniforms)] = uniforms.to(self.uniforms)
        self.at.zero_()
        to = self.sampling
        assert to.temperature is not None and to.greedy is not None
        to.temperature.copy_(torch.tensor([[one.temperature or 1.0] for one in sampling]))
        to.greedy.copy_(torch.tensor([one.temperature == 0 for one in sampling]))
        if to.top_k is not None and to.top_p is not None:
            to.top_k.copy_(torch.tensor([[one.top_k if one.truncated else 0] for one in sampling]))
            to.top_p.copy_(torch.tensor([[one.top_p if one.truncated else 1.0] for one in sampling]))


def attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    bounds: tuple[Tensor, Tensor, Tensor],
    columns: int,
    scale: float,
    window: int | None,
    kernel: Any = None,
) -> Tensor:
    """Attention of one query a lane, [R, heads, D] over [T, KV heads, D] twice -> [R, heads, D].

    `bounds` are 0 to R, where each lane's keys begin, [R + 1] both, and how many they are, [R]; all int32.
    """
    queries, begins, used = bounds
    if query.device.type != "cuda":
        return lane_by_lane(query, keys, values, begins, used, scale, window)
    if kernel is not None and query.shape[2] in kernel.WIDTHS:
        found: Tensor = kernel.attend(query, keys, values, begins, used, scale, window)
        return found
    sides = {"window_size_left": -1 if window is None else window - 1, "window_size_right": -1 if window is None else 0}
    given = query, keys, values, queries, begins, 1, columns, 0.0, False, False
    found = torch.ops.aten._flash_attention_forward(*given, scale=scale, seqused_k=used, **sides)
    return found[0]


def decode_kernel() -> Any:
    """The module of the kernel in Triton; None where Triton cannot be used."""
    if not can_compile():
        return None
    # Not at the top: Triton comes with torch's builds for CUDA alone.
    from shoal.engines.builtin import decode_kernel as kernel  # noqa: PLC0415

    return kernel


def lane_by_lane(
    query: Tensor, keys: Tensor, values: Tensor, begins: Tensor, used: Tensor, scale: float, window: int | None
) -> Tensor:
    """The same without the kernel: what it is held to."""
    mixed = []
    for row, (begin, count) in enumerate(zip(begins.tolist(), used.tolist(), strict=False)):
        seen = slice(begin + max(count - (window or count), 0), begin + count)
        parts = (x[seen].transpose(0, 1) for x in (keys, values))
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[0], 0) for x in parts)
        mixed.append(F.scaled_dot_product_attention(query[row][:, None], key, value, scale=scale)[:, 0])
    return torch.stack(mixed)


def can_record(decoder: FastDecoder) -> bool:
    """Whether this device and these dtypes have what a graph decoder calls."""
    half = decoder.attention_dtype.itemsize == 2
    return decoder.device.type == "cuda" and half and decoder.head_dim <= 256 and decoder.head_dim % 8 == 0
