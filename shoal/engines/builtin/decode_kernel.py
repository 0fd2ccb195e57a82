"""Attention of one new token a lane, in Triton: imported only where there is Triton.

The flash kernel takes blocks of 128 queries and a whole thread block's memory for the two or four that there are; this
one reads keys and values once for all heads that share them, and little else.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

LEAST_QUERIES = 16  # rows of the smallest product that tensor cores take
WIDTHS = (16, 32, 64, 128, 256)
EVERY = 2**30  # a window that hides nothing
COLUMNS, WARPS, STAGES = 64, 4, 2  # columns at a time, and how Triton runs a program; measured on an H100


@triton.jit
def _attend(  # type: ignore[no-untyped-def]  # Triton takes no names of types
    query,
    keys,
    values,
    out,
    begins,
    used,
    scale,
    heads,
    kv_heads,
    step,
    window,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    row, kv_head = tl.program_id(0), tl.program_id(1)
    count = tl.load(used + row)
    begin = tl.load(begins + row).to(tl.int64)
    group = heads // kv_heads
    head, width = tl.arange(0, GROUP), tl.arange(0, WIDTH)
    at = (kv_head * group + head)[:, None] * WIDTH + width[None, :]
    real = (head < group)[:, None]
    asked = tl.load(query + row * step + at, mask=real, other=0.0)
    most = tl.full([GROUP], float("-inf"), tl.float32)
    total = tl.zeros([GROUP], tl.float32)
    mixed = tl.zeros([GROUP, WIDTH], tl.float32)
    first = tl.maximum(count - window, 0)
    for start in range(first // COLUMNS * COLUMNS, count, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        seen = (column >= first) & (column < count)
        place = ((begin + column) * kv_heads + kv_head)[:, None] * WIDTH + width[None, :]
        key = tl.load(keys + place, mask=seen[:, None], other=0.0)
        scores = tl.where(seen[None, :], tl.dot(asked, tl.trans(key)) * scale, float("-inf"))
        higher = tl.maximum(most, tl.max(scores, 1))
        powers = tl.exp(scores - higher[:, None])
        kept = tl.exp(most - higher)
        total = total * kept + tl.sum(powers, 1)
        value = tl.load(values + place, mask=seen[:, None], other=0.0)
        mixed = mixed * kept[:, None] + tl.dot(powers.to(value.dtype), value)
        most = higher
    tl.store(out + row * heads * WIDTH + at, (mixed / total[:, None]).to(out.dtype.element_ty), mask=real)


def attend(
    query: Tensor, keys: Tensor, values: Tensor, begins: Tensor, used: Tensor, scale: float, window: int | None
) -> Tensor:
    """[R, heads, D] over [T, KV heads, D] twice -> [R, heads, D]; lane r sees `used[r]` places from `begins[r]` on.

    D is one of WIDTHS. The last block of a window begins before it, so that every block has a column that is seen.

    Raises:
        RuntimeError: Triton cannot make the kernel for this device.
    """
    rows, heads, width = query.shape
    if query.stride()[1:] != (width, 1):
        query = query.contiguous()
    kv_heads = keys.shape[1]
    out = query.new_empty(query.shape)
    group = max(triton.next_power_of_2(heads // kv_heads), LEAST_QUERIES)
    try:
        _attend[(rows, kv_heads)](
            query,
            keys,
            values,
            out,
            begins,
            used,
            scale,
            heads,
            kv_heads,
            query.stride(0),
            EVERY if window is None else window,
            GROUP=group,
            WIDTH=width,
            COLUMNS=COLUMNS,
            num_warps=WARPS,
            num_stages=STAGES,
        )
    except triton.TritonError as error:
        raise RuntimeError(f"the kernel of decode_kernel.py: {error}") from error
    return out
