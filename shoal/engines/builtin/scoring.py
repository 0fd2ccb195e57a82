"""Log-probs of given tokens, by a decoder's own weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from shoal.engines.builtin.decode import Decoder
from shoal.types import Segment

LOGITS_AT_ONCE = 2**26  # numbers, 256 MiB


def score(decoder: Decoder, segments: Sequence[Segment], temperature: float, vocabulary: int) -> list[list[float]]:
    """Log-probs of each segment's sampled ids after its context, in nats. Contexts have one token at least."""
    found: list[list[float]] = [[] for _ in segments]
    for batch in _batches(segments, vocabulary):
        ids = [segments[index].context_ids + segments[index].sampled_ids for index in batch]
        keep = max(len(segments[index].sampled_ids) for index in batch)
        _, logits = decoder.prefill([row[:-1] for row in ids], keep)
        targets = torch.tensor([[0] * (keep - len(row)) + row[-keep:] for row in ids], device=logits.device)
        scaled = logits / temperature
        # Not log_softmax, which is off by 1e-5 at 150,000 ids on a CPU.
        chosen = (scaled.gather(-1, targets[..., None]).squeeze(-1) - scaled.logsumexp(-1)).tolist()
        for index, row in zip(batch, chosen, strict=True):
            found[index] = row[keep - len(segments[index].sampled_ids) :]
    return found


def _batches(segments: Sequence[Segment], vocabulary: int) -> Iterator[list[int]]:
    """Indices of segments to score together: of similar lengths, with a bounded number of logits."""
    lengths = {index: len(s.context_ids) + len(s.sampled_ids) for index, s in enumerate(segments) if s.sampled_ids}
    batch: list[int] = []
    for index in sorted(lengths, key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[index] * vocabulary > LOGITS_AT_ONCE:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
