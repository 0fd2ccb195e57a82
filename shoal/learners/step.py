"""One optimizer step: minibatches, the per-token numbers beside a micro-batch, and what went wrong in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.algorithms.batch import token_weights
from shoal.algorithms.logprobs import TokenLogprobs
from shoal.algorithms.micro_batch import MicroBatch, move
from shoal.algorithms.terms import TokenTerms
from shoal.errors import TrainingError
from shoal.types import Batch, TrainSequence

SHARE = 8
"""One in so many completions of zero advantage, whose passes are skipped, is scored for the metrics."""


class NonFiniteError(TrainingError):
    """A loss or gradient that is not finite. `completions` are the batch's completion numbers it came from."""

    def __init__(self, message: str, completions: list[int]) -> None:
        super().__init__(message)
        self.completions = completions


@dataclass
class Minibatch:
    """What one optimizer step trains on: sequences, the weights of their tokens, [sampled] each, and their places in
    the batch. Sequences whose passes are skipped are not in here, but count in the weights."""

    sequences: list[TrainSequence]
    weights: list[NDArray[np.float64]]
    places: list[int]


def minibatches(
    batch: Batch, count: int, aggregation: str, skip_zero_advantage: bool, shuffle: str | None = None
) -> list[Minibatch]:
    """Divides a batch into `count` runs of consecutive whole completions, as equal as can be.

    `shuffle` seeds a new order: of the groups, and of each group's completions, which stay together because they share
    their prompt's pass. None: the batch's own.
    """
    completions = _order(batch, shuffle)
    parts = []
    for numbers in np.array_split(np.array(completions, dtype=np.int64), count):
        wanted = set(numbers.tolist())
        whole = [index for index, sequence in enumerate(batch.sequences) if sequence.completion in wanted]
        if not whole:
            continue
        weights = token_weights([batch.sequences[index] for index in whole], aggregation, batch.max_new_tokens)
        alive = _with_signal(batch.sequences, whole) if skip_zero_advantage else wanted
        kept = [
            (index, weight)
            for index, weight in zip(whole, weights, strict=True)
            if batch.sequences[index].completion in alive
        ]
        places = [index for index, _ in kept]
        parts.append(Minibatch([batch.sequences[index] for index in places], [weight for _, weight in kept], places))
    return parts


def _order(batch: Batch, shuffle: str | None) -> list[int]:
    """The batch's completion numbers, in the order in which they are divided."""
    if shuffle is None:
        return list(dict.fromkeys(sequence.completion for sequence in batch.sequences))
    groups: dict[int, dict[int, None]] = {}
    for sequence in batch.sequences:
        groups.setdefault(sequence.group, {})[sequence.completion] = None
    random = Random(shuffle)
    order = [list(completions) for completions in groups.values()]
    random.shuffle(order)
    for completions in order:
        random.shuffle(completions)
    return [number for completions in order for number in completions]


def skipped_share(batch: Batch) -> tuple[Minibatch | None, float]:
    """Of the completions whose passes are skipped, every SHARE-th (at least one), to measure them by; and how many
    trained tokens each of theirs stands for. (None, 0.0) where none is skipped."""
    alive = _with_signal(batch.sequences, range(len(batch.sequences)))
    skipped = list(dict.fromkeys(one.completion for one in batch.sequences if one.completion not in alive))
    chosen = set(skipped[::SHARE])
    places = [index for index, one in enumerate(batch.sequences) if one.completion in chosen]
    if not places:
        return None, 0.0
    sequences = [batch.sequences[index] for index in places]
    tokens = sum(one.trained_tokens for one in batch.sequences if one.completion not in alive)
    weights = [np.zeros(len(one.mask)) for one in sequences]
    return Minibatch(sequences, weights, places), tokens / sum(one.trained_tokens for one in sequences)


def _with_signal(sequences: Sequence[TrainSequence], indices: Sequence[int]) -> set[int]:
    """Completions with an advantage other than 0 on a trained token."""
    return {sequences[index].completion for index in indices if sequences[index].has_signal}


class TokenTable:
    """Per-token numbers of a list of sequences, looked up for the tokens of a micro-batch."""

    def __init__(self, minibatch: Minibatch, old: Sequence[NDArray[np.float32]] | None) -> None:
        """`old` are log-probs at the start of the batch, [sampled] per sequence; None: the current ones, detached."""
        sequences = minibatch.sequences
        self.starts = np.cumsum([0, *(len(sequence.mask) for sequence in sequences)], dtype=np.int64)
        self.completions = np.array([sequence.completion for sequence in sequences], dtype=np.int64)
        self.columns = {
            "sampler_logprobs": _joined([sequence.sampler_logprobs for sequence in sequences]),
            "advantages": _joined([sequence.advantages for sequence in sequences]),
            "weights": _joined(minibatch.weights),
        }
        if old is not None:
            self.columns["old_logprobs"] = _joined(old)
        references = [sequence.ref_logprobs for sequence in sequences]
        known = [one for one in references if one is not None]
        if len(known) == len(references):
            self.columns["ref_logprobs"] = _joined(known)

    def terms(self, batch: MicroBatch, found: TokenLogprobs) -> TokenTerms:
        """The tensors of the loss for one micro-batch, on the log-probs' device and in their dtype."""
        rows = batch.sequence.cpu().numpy()
        at = self.starts[rows] + batch.token.cpu().numpy()
        numbers, local = np.unique(self.completions[rows], return_inverse=True)
        like = found.logprobs
        columns = torch.from_numpy(np.stack([column[at].astype(np.float64) for column in self.columns.values()]))
        moved = dict(zip(self.columns, move(columns.to(like.dtype), like.device).unbind(), strict=True))
        old = moved.pop("old_logprobs", None)
        return TokenTerms(
            logprobs=like,
            unit_logprobs=found.unit_logprobs,
            old_logprobs=like.detach() if old is None else old,
            completion=move(torch.from_numpy(local), like.device),
            num_completions=len(numbers),
            entropy=found.entropy,
            **moved,
        )


def _joined(columns: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """One array of all; of none where a rank has no sequence."""
    return np.concatenate(columns) if columns else np.zeros(0)


def scatter(values: Tensor, batch: MicroBatch, into: Sequence[NDArray[np.float32]]) -> None:
    """Writes one value per trained token of a micro-batch into arrays [sampled], one per packed sequence."""
    rows, tokens, found = batch.sequence.tolist(), batch.token.tolist(), values.float().cpu().tolist()
    for row, token, value in zip(rows, tokens, found, strict=True):
        into[row][token] = value
