"""From logits to tokens: temperature, top-k, top-p, and the inverse of the cumulative distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.algorithms.fused import fused
from shoal.algorithms.precision import widest_float
from shoal.engines.base import SamplingParams

BLOCK = 512  # ids that are summed together on CUDA


@dataclass(frozen=True)
class RowSampling:
    """The sampling parameters of R rows as tensors; None where no row needs them.

    `temperature` [R, 1] has 1 for greedy rows, whose log-probs are those at temperature 1: the distribution that a
    greedy row samples from is a single point, which says nothing. `filtered` are the rows with a top-k or top-p.
    """

    temperature: Tensor | None
    greedy: Tensor | None
    filtered: Tensor | None
    top_k: Tensor | None
    top_p: Tensor | None

    @classmethod
    def of(cls, params: Sequence[SamplingParams], device: torch.device) -> RowSampling:
        if params and all(p is params[0] for p in params) and params[0] == SamplingParams(params[0].max_new_tokens):
            return cls(None, None, None, None, None)
        temperatures = [p.temperature or 1.0 for p in params]
        greedy = [p.temperature == 0 for p in params]
        filtered = [row for row, p in enumerate(params) if p.truncated]
        return cls(
            temperature=torch.tensor(temperatures, device=device)[:, None] if set(temperatures) != {1.0} else None,
            greedy=torch.tensor(greedy, device=device) if any(greedy) else None,
            filtered=torch.tensor(filtered, device=device) if filtered else None,
            top_k=torch.tensor([[params[row].top_k] for row in filtered], device=device) if filtered else None,
            top_p=torch.tensor([[params[row].top_p] for row in filtered], device=device) if filtered else None,
        )


def sample(logits: Tensor, uniform: Tensor, rows: RowSampling) -> tuple[Tensor, Tensor]:
    """Draws one token for each row: the first whose cumulative probability, in the order of ids, exceeds `uniform`.

    Args:
        logits: [R, V] float32.
        uniform: [R] in [0, 1).
        rows: The sampling parameters of the rows.

    Returns:
        Token ids [R] int64 and their log-probs [R] float32 in the distribution sampled, in nats.
    """
    if rows.temperature is not None:
        logits = logits / rows.temperature
    probabilities = softmax(logits)
    if rows.filtered is not None and rows.top_k is not None and rows.top_p is not None:
        probabilities[rows.filtered] = truncate(probabilities[rows.filtered], rows.top_k, rows.top_p)
    tokens = draw(probabilities, uniform)
    if rows.greedy is not None:
        tokens = torch.where(rows.greedy, logits.argmax(-1), tokens)
    return tokens, probabilities.gather(-1, tokens[:, None]).squeeze(-1).log()


@fused
def softmax(logits: Tensor) -> Tensor:
    """exp(logits) / sum over the last dimension, [R, V] -> [R, V].

    torch's own on a CPU adds up in a way that loses 1e-5 of the sum at 150,000 ids; `sum` does not.
    """
    powers = (logits - logits.amax(-1, keepdim=True)).exp_()
    return powers.div_(powers.sum(-1, keepdim=True))


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Inverts the cumulative distribution of each row, [R, V] and [R] -> [R]; never a token of probability 0.

    Sums run in float64 where the device has it: in float32 the tail of a large vocabulary is lost.
    """
    wide = widest_float(probabilities.device)
    if probabilities.is_cuda:
        return draw_by_blocks(probabilities, uniform.to(wide))
    cumulative = probabilities.cumsum(-1, dtype=wide)
    if wide is torch.float32:
        # 24 bits, so that rounding to float32 cannot give 1.
        uniform = (uniform * 2**24).floor() / 2**24
    target = uniform.to(wide)[:, None] * cumulative[:, -1:]
    # Not a number anywhere: past the end, so the last id, whose log-prob then tells.
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp_(max=probabilities.shape[-1] - 1)


def draw_by_blocks(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """The same by sums of blocks, then within one block: a GPU takes a thread block for a whole running sum.

    `uniform` has the width to sum in. The last bit of a sum may be another than `draw`'s.
    """
    ids = probabilities.shape[1]
    whole = ids // BLOCK * BLOCK
    sums = probabilities[:, :whole].unflatten(1, (-1, BLOCK)).sum(-1, dtype=uniform.dtype)
    rest = probabilities[:, whole:].sum(-1, keepdim=True, dtype=uniform.dtype)
    sums = torch.cat([sums, rest], dim=1)
    ends = sums.cumsum(1)
    target = uniform[:, None] * ends[:, -1:]
    block = torch.searchsorted(ends, target, right=True).clamp_(max=sums.shape[1] - 1)
    columns = block * BLOCK + torch.arange(BLOCK, device=probabilities.device)
    inside = probabilities.gather(1, columns.clamp(max=ids - 1)).to(uniform.dtype)
    inside = inside.masked_fill_(columns >= ids, 0).cumsum(1)
    # Within the block's own sum, or rounding could lead past its last id of a probability above 0.
    within = torch.minimum(target - (ends - sums).gather(1, block), inside[:, -1:].nextafter(torch.zeros_like(target)))
    found = torch.searchsorted(inside, within, right=True)
    return (block * BLOCK + found).squeeze(-1).clamp_(max=ids - 1)


def truncate(probabilities: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Keeps the `top_k` likeliest tokens (0: all), then the fewest of these that make up `top_p` of their mass.

    [R, V], [R, 1], [R, 1] -> [R, V], renormalised. The likeliest token always stays; of
    equal ones the lower id comes first.
    """
    ordered, ids = probabilities.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(ordered.shape[-1], device=ordered.device)
    ordered = torch.where((top_k == 0) | (rank < top_k), ordered, 0)
    before = ordered.cumsum(-1) - ordered
    keep = (before < top_p * ordered.sum(-1, keepdim=True)) | (rank == 0)
    ordered = torch.where((top_p >= 1) | keep, ordered, 0)
    ordered = ordered / ordered.sum(-1, keepdim=True)
    return torch.zeros_like(probabilities).scatter(-1, ids, ordered)
