"""Attention masks of packed rows."""

from __future__ import annotations

import torch
from torch import Tensor

from shoal.algorithms.micro_batch import MicroBatch


def allowed(batch: MicroBatch, window: int | None = None) -> Tensor:
    """[R, 1, L, L] bool, True where the query (third axis) may attend to the key (fourth).

    Causal, along the query's own path through its tree only. With a sliding `window`, also less than `window`
    positions back. Positions count along a path, so this is exact with shared beginnings. Every query may attend to
    itself, padding included, so that no row of a softmax is empty.
    """
    width = batch.until.shape[1]
    column = torch.arange(width, device=batch.until.device)
    query = column[:, None]
    mask = (query == column) | ((query > column) & (batch.until[:, None, :] > query))
    if window is not None:
        mask = mask & (batch.position_ids[:, :, None] - batch.position_ids[:, None, :] < window)
    return mask[:, None]


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask as `eager` attention takes it: 0 where allowed, the dtype's least number elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


def cumulative_lengths(batch: MicroBatch) -> tuple[Tensor, int]:
    """Starts of the sequences in one flattened packed row, [S + 1] int32, and the longest, for variable-length kernels.

    Every sequence must be a tree of its own. Padding counts as one more sequence.
    """
    starts = torch.nonzero(batch.position_ids.flatten() == 0).flatten()
    ends = torch.tensor([batch.position_ids.numel()], device=starts.device)
    bounds = torch.cat([starts, ends]).to(torch.int32)
    return bounds, int(bounds.diff().max())
