"""Passes of one rank among several, who must all make as many of them, and the passes that DeepSpeed watches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from shoal.algorithms.logprobs import TokenLogprobs
from shoal.algorithms.micro_batch import MicroBatch
from shoal.config.nodes.parts import LearnerConfig
from shoal.learners.forward import LogprobHead, PolicyForward
from shoal.learners.model import Policy
from shoal.learners.passes import Passes
from shoal.learners.step import Minibatch
from shoal.runtime import Runtime
from shoal.types import Segment, TrainSequence

FILLER = 2
"""Tokens of a micro-batch that holds no completion."""


class RankPasses(Passes):
    """As `Passes`, with empty micro-batches where another rank has more: under ZeRO every pass gathers from all."""

    def __init__(self, policy: Policy, cfg: LearnerConfig, runtime: Runtime, head: LogprobHead) -> None:
        super().__init__(policy, cfg, runtime, head)
        self.rank, self.world = dist.get_rank(), dist.get_world_size()

    def pack(self, sequences: Sequence[TrainSequence]) -> list[MicroBatch]:
        made = super().pack(sequences)
        most = most_of_ranks(len(made), self.runtime.device)
        return made + [empty_micro_batch() for _ in range(most - len(made))]

    def score_share(self, segments: Sequence[Segment], temperature: float) -> list[list[float]]:
        """`score_segments` of this rank's part of them, which is a run of consecutive ones."""
        bounds = split_evenly([len(one.context_ids) + len(one.sampled_ids) for one in segments], self.world)
        return self.score_segments(segments[bounds[self.rank] : bounds[self.rank + 1]], temperature)


class PolicyModule(nn.Module):
    """A policy whose call is a pass from a micro-batch to log-probs: what DeepSpeed sees as the model."""

    def __init__(self, model: nn.Module, head: LogprobHead) -> None:
        super().__init__()
        self.model = model
        self.head = head

    def forward(
        self, run: PolicyForward, batch: MicroBatch, temperature: float, entropy: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The parts of `TokenLogprobs`, as a plain tuple: DeepSpeed follows the tensors in it."""
        found = run(batch, temperature, entropy)
        unit = None if found.unit_logprobs is found.logprobs else found.unit_logprobs
        return found.logprobs, unit, found.entropy


class EngineForward:
    """A pass with gradient through a DeepSpeed engine, called as `PolicyForward` is."""

    def __init__(self, engine: Any, run: PolicyForward) -> None:
        self.engine = engine
        self.run = run

    def __call__(self, batch: MicroBatch, temperature: float = 1.0, entropy: bool = False) -> TokenLogprobs:
        call = self.engine if torch.is_grad_enabled() else self.engine.module
        logprobs, unit, entropies = call(self.run, batch, temperature, entropy)
        return TokenLogprobs(logprobs, logprobs if unit is None else unit, entropies)


def most_of_ranks(count: int, device: torch.device) -> int:
    """The largest count that any rank has."""
    found = torch.tensor(count, device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def empty_micro_batch() -> MicroBatch:
    """A pass that trains no token: its loss and its gradient are exactly 0."""
    ids = torch.zeros(1, FILLER, dtype=torch.int64)
    none = torch.zeros(0, dtype=torch.int64)
    return MicroBatch(
        input_ids=ids,
        position_ids=torch.arange(FILLER)[None],
        until=torch.full_like(ids, FILLER),
        source=none,
        targets=none,
        sequence=none,
        token=none,
        plain=True,
    )


def share_of(part: Minibatch, rank: int, world: int) -> Minibatch:
    """A rank's whole groups of an optimizer step: the group with most tokens first, to the rank that has least. Every
    sequence is one rank's, and each keeps the weight that it has in the whole step."""
    tokens: dict[int, int] = {}
    for one in part.sequences:
        tokens[one.group] = tokens.get(one.group, 0) + len(one.ids)
    load = [0] * world
    mine = set()
    for group in sorted(tokens, key=lambda number: (-tokens[number], number)):
        least = load.index(min(load))
        load[least] += tokens[group]
        if least == rank:
            mine.add(group)
    kept = [index for index, one in enumerate(part.sequences) if one.group in mine]
    return Minibatch(
        [part.sequences[index] for index in kept],
        [part.weights[index] for index in kept],
        [part.places[index] for index in kept],
    )


def split_evenly(sizes: Sequence[int], parts: int) -> list[int]:
    """Bounds of `parts` runs of consecutive items with about the same sum each; some may be empty."""
    ends = np.cumsum([0, *sizes])
    inner = [int(np.searchsorted(ends, ends[-1] * part / parts)) for part in range(1, parts)]
    return [0, *inner, len(sizes)]
