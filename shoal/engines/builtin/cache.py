"""The KV cache: all rows end at one column, so a step writes one slice and finished rows are overwritten."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

SHARE_FROM = 64  # tokens of a prompt: copies of shorter ones cost less than attending in two parts


class KVCache(Cache):
    """Keys and values of up to `capacity` rows, or lanes, over `columns` columns, right-aligned.

    Row r holds its tokens in columns [starts[r], end), so that the next token of every row goes to column `end`, and
    the distance of two columns is the distance of two positions (sliding windows rely on that). `low` is the first
    column that any row uses. Hugging Face modules take it as their cache; the fast decoder reads the layers' tensors.
    """

    def __init__(
        self,
        layers: int,
        capacity: int,
        columns: int,
        device: torch.device,
        *,
        fast: bool = False,
        share: bool = False,
        by_columns: bool = False,
    ) -> None:
        """`fast` keeps a head's keys side by side for each number of them, `by_columns` a column's heads side by side;
        `share` lets rows have their prompts in common."""
        self.buffers = [ColumnLayer(self) for _ in range(layers)]
        super().__init__(layers=list(self.buffers))
        self.capacity = capacity
        self.columns = columns
        self.device = device
        self.fast = fast
        self.share = share
        self.by_columns = by_columns
        self.shared: SharedPrompts | None = None
        self.rows = 0
        self.low = 0
        self.end = 0
        self.starts = torch.zeros(0, dtype=torch.long, device=device)

    @property
    def nbytes(self) -> int:
        """Of keys and values."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.buffers if layer.is_initialized)

    def clear(self) -> None:
        """Drops all rows. Numbers are zeroed, since not-a-number times zero would show."""
        self.shared = None
        self.rows = self.low = self.end = 0
        self.starts = self.starts[:0]
        for layer in self.buffers:
            if layer.is_initialized:
                layer.keys.zero_()
                layer.values.zero_()

    def use(self, starts: Tensor, low: int, living: Tensor | None = None) -> None:
        """Sets the rows in use and their first columns, [R]; `low` is the least of them. Rows that share prompts also
        need `living`, the indices of those whose results matter."""
        self.rows = len(starts)
        self.starts = starts
        self.low = low
        if self.shared is not None:
            assert living is not None
            self.shared.lay_out(living)

    def visible(self, new: int) -> Tensor:
        """[R, columns - low] bool: the columns that hold tokens of the row, up to `new` tokens past `end`."""
        return torch.arange(self.low, self.end + new, device=self.device) >= self.starts[:, None]

    def positions(self, new: int) -> Tensor:
        """[R, new]: positions of the next `new` tokens; 0 before a row's first token."""
        columns = torch.arange(self.end, self.end + new, device=self.device)
        return (columns - self.starts[:, None]).clamp(min=0)

    def arrange(self, sources: Tensor, targets: Tensor, rows: int) -> None:
        """Copies rows `sources` over rows `targets`, then has the first `rows`. `use` must follow."""
        for layer in self.buffers:
            layer.copy(sources, targets)
        if self.shared is not None:
            self.shared.arrange(sources, targets, rows)
        self.rows = rows

    def append(self, prompts: KVCache, index: Tensor, fork: bool = False) -> None:
        """Adds rows after the last: row i gets the tokens of row index[i] of `prompts`, up to this cache's end.

        `fork` says that the rows will be copied to others, which then have their prompts in common. `use` must follow.
        """
        if self.share and self.rows == 0 and fork and prompts.end >= SHARE_FROM:
            self.shared = SharedPrompts(prompts, index, self.end)
        else:
            if self.shared is not None:
                # The new rows' prompts end at another column than the old ones'.
                for mine in self.buffers:
                    mine.unshare(self.shared)
                self.shared = None
            for mine, theirs in zip(self.buffers, prompts.buffers, strict=True):
                mine.append(theirs, index)
        self.rows += len(index)

    def row(self, index: int) -> KVCache:
        """A cache of one row, a copy of row `index`."""
        copy = KVCache(len(self.buffers), 1, self.end, self.device, fast=self.fast, by_columns=self.by_columns)
        copy.end = self.end
        copy.append(self, torch.tensor([index], device=self.device))
        copy.use(self.starts[index : index + 1], self.low)
        return copy

    def resize(self, capacity: int, columns: int, end: int) -> None:
        """Moves the rows so that they end at column `end`, in a new buffer where the present one is too small."""
        fits = capacity <= self.capacity and columns <= self.columns
        if not fits:
            self.capacity, self.columns = capacity, columns
        for layer in self.buffers:
            layer.resize(end, fits)
        shift = end - self.end
        if self.shared is not None:
            self.shared.column += shift
        self.end, self.low, self.starts = end, self.low + shift, self.starts + shift


class SharedPrompts:
    """Prompts that several rows have in common: what lies left of `column` in row r is row index[r] of `prompts`.

    To attend to a prompt once for all its rows, `lay_out` gives rows slots, `size` for each prompt: row r has slot
    slots[r], and slot s holds row rows[s] (any row where the slot is empty). Rows that do not matter have no slot of
    their own.
    """

    size: int
    slots: Tensor
    rows: Tensor

    def __init__(self, prompts: KVCache, index: Tensor, column: int) -> None:
        self.prompts = prompts
        self.index = index
        self.column = column

    def arrange(self, sources: Tensor, targets: Tensor, rows: int) -> None:
        """Gives rows `targets` the prompts of rows `sources`, then has the first `rows`."""
        new = rows - len(self.index)
        index = torch.cat([self.index, self.index.new_zeros(new)]) if new > 0 else self.index
        index[targets] = index[sources]
        self.index = index[:rows]

    def lay_out(self, living: Tensor) -> None:
        """Gives a slot to each of the rows `living`, [N]; the others have any."""
        index = self.index[living]
        order = index.argsort(stable=True)
        counts = torch.bincount(index, minlength=self.prompts.rows)
        rank = torch.arange(len(living), device=index.device) - (counts.cumsum(0) - counts)[index[order]]
        self.size = int(counts.max()) if len(living) else 0
        slots = index[order] * self.size + rank
        self.slots = torch.zeros_like(self.index)
        self.slots[living[order]] = slots
        self.rows = index.new_zeros(self.prompts.rows * self.size)
        self.rows[slots] = living[order]


class ColumnLayer(CacheLayerMixin):
    """One layer's part: keys and values [capacity, KV heads, columns, head dimension]."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, cache: KVCache) -> None:
        super().__init__()
        self.cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        # Zeros: what lies left of a row is masked, but not-a-number times zero would show.
        self.keys = self._allocate(key_states, self.cache.fast)
        self.values = self._allocate(value_states, False)
        self.is_initialized = True

    def _allocate(self, like: Tensor, transposed: bool) -> Tensor:
        make = like.new_zeros if self.cache.shared is None else like.new_empty  # `unshare` clears it
        size = self.cache.capacity, like.shape[1], self.cache.columns, like.shape[3]
        if transposed:
            return make((*size[:2], size[3], size[2])).transpose(2, 3)
        if self.cache.by_columns:
            return make((size[0], size[2], size[1], size[3])).transpose(1, 2)
        return make(size)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes [R, KV heads, L, D] after the rows' ends; returns all columns in use."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        cache = self.cache
        end = cache.end + key_states.shape[2]
        self.keys[: cache.rows, :, cache.end : end] = key_states
        self.values[: cache.rows, :, cache.end : end] = value_states
        return self.keys[: cache.rows, :, cache.low : end], self.values[: cache.rows, :, cache.low : end]

    def copy(self, sources: Tensor, targets: Tensor) -> None:
        if not self.is_initialized:
            return
        shared = self.cache.shared
        used = slice(self.cache.low if shared is None else shared.column, self.cache.end)
        for buffer in (self.keys, self.values):
            buffer[targets, :, used] = buffer[sources, :, used]

    def unshare(self, shared: SharedPrompts) -> None:
        """Copies the prompts into the rows and clears what no row has written."""
        prompts = shared.prompts.buffers[self.cache.buffers.index(self)]
        if not self.is_initialized:
            self.lazy_initialization(prompts.keys, prompts.values)
        rows, first = self.cache.rows, shared.column
        width = min(prompts.cache.end, first)
        used = slice(prompts.cache.end - width, prompts.cache.end)
        for mine, theirs in ((self.keys, prompts.keys), (self.values, prompts.values)):
            mine[:, :, :first] = 0
            mine[rows:, :, first:] = 0
            mine[:rows, :, first - width : first] = theirs[shared.index, :, used]

    def append(self, prompts: ColumnLayer, index: Tensor) -> None:
        if not self.is_initialized:
            self.lazy_initialization(prompts.keys, prompts.values)
        first, end = self.cache.rows, self.cache.end
        # A prompt that was prefilled beside longer ones has padding on its left, which need not fit.
        width = min(prompts.cache.end, end)
        used = slice(prompts.cache.end - width, prompts.cache.end)
        for mine, theirs in ((self.keys, prompts.keys), (self.values, prompts.values)):
            mine[first : first + len(index), :, end - width : end] = theirs[index, :, used]

    def resize(self, end: int, in_place: bool) -> None:
        if not self.is_initialized:
            return
        cache = self.cache
        used = slice(cache.low, cache.end)
        keys, values = self.keys[: cache.rows, :, used], self.values[: cache.rows, :, used]
        if in_place:
            keys, values = keys.clone(), values.clone()  # the two places may overlap
        else:
            self.keys, self.values = self._allocate(self.keys, cache.fast), self._allocate(self.values, False)
        self.keys[: cache.rows, :, end - keys.shape[2] : end] = keys
        self.values[: cache.rows, :, end - keys.shape[2] : end] = values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.end - self.cache.low + query_length, 0

    def get_seq_length(self) -> int:
        return self.cache.end - self.cache.low

    def get_max_length(self) -> int:
        return -1
