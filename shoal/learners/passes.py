"""Passes of a policy over sequences: the layout that it can take, and scoring without gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from logging import getLogger

import numpy as np
import torch
from numpy.typing import NDArray

from shoal.algorithms.micro_batch import MicroBatch
from shoal.algorithms.packing import pack
from shoal.algorithms.runs import spans
from shoal.config.nodes.parts import LearnerConfig
from shoal.learners.cpu.tree_attention import LONGEST, NAME
from shoal.learners.cuda.varlen_attention import NAME as VARLEN
from shoal.learners.forward import LogprobHead, PolicyForward, packing_obstacle, refuse_packing
from shoal.learners.model import Policy
from shoal.learners.own_tokens import own_samples, rounding
from shoal.learners.step import scatter
from shoal.runtime import Runtime
from shoal.types import Segment, TrainSequence

logger = getLogger(__name__)

TEXT = "Tom has 3 apples and buys 4 more. How many apples does he have now?"
# Tokens of a packed row on a GPU, which prefers few long rows.
DEVICE_ROW = 1024
PACKING_TOLERANCE = {4: 1e-3, 2: 0.2, 8: 1e-6}


class Passes:
    """A policy, and how its sequences are laid out."""

    def __init__(self, policy: Policy, cfg: LearnerConfig, runtime: Runtime, head: LogprobHead | None = None) -> None:
        """`head` as in `PolicyForward`. Raises ConfigError where packing was asked for and this model cannot be
        packed."""
        self.policy = policy
        self.cfg = cfg
        self.runtime = runtime
        self.forward = PolicyForward(policy, runtime, cfg.logprob_chunk, head)
        self.packing = self._can_pack()

    def pack(self, sequences: Sequence[TrainSequence]) -> list[MicroBatch]:
        """Micro-batches of the sequences, by the configuration's bounds, on the CPU. Each is of one temperature."""
        by_temperature: dict[float | None, list[int]] = {}
        for index, sequence in enumerate(sequences):
            by_temperature.setdefault(sequence.temperature, []).append(index)
        made = []
        for temperature, indices in by_temperature.items():
            places = torch.tensor(indices)
            for one in self._pack([sequences[index] for index in indices]):
                made.append(replace(one, sequence=places[one.sequence], temperature=temperature))
        return made

    def _pack(self, sequences: Sequence[TrainSequence]) -> list[MicroBatch]:
        flash = self.forward.attention == "flash_attention_2"
        length = self.cfg.pack_length
        if not length and self._by_trees(sequences):
            length = self.cfg.micro_batch_tokens
        elif not length and self.runtime.device.type != "cpu":
            length = DEVICE_ROW
        packed = pack(
            sequences,
            micro_batch_tokens=self.cfg.micro_batch_tokens,
            micro_batch_size=self.cfg.micro_batch_size,
            packing=self.packing,
            pack_length=length,
            share_prefix=self.cfg.share_prefix and not flash,
            # Without padding: attention is told where sequences begin and end.
            flat=flash or (self.forward.attention == VARLEN and not self.cfg.pack_length),
        )
        return [self._with_spans(one) for one in packed]

    def _with_spans(self, batch: MicroBatch) -> MicroBatch:
        """Found while the layout is on the CPU: on the device everybody would wait for it."""
        if batch.plain or self.forward.attention != VARLEN:
            return batch
        return replace(batch, spans=spans(batch.until))

    def _by_trees(self, sequences: Sequence[TrainSequence]) -> bool:
        """Whether attention goes by trees, whatever row they are in."""
        return self.forward.attention == NAME and all(len(sequence.ids) < LONGEST for sequence in sequences)

    @torch.no_grad()
    def score(
        self, sequences: Sequence[TrainSequence], micro_batches: Sequence[MicroBatch], temperature: float
    ) -> list[NDArray[np.float32]]:
        """Log-probs per sequence, [sampled], 0 where the mask is False."""
        found = [np.zeros(len(sequence.mask), dtype=np.float32) for sequence in sequences]
        self.policy.model.eval()
        for one in micro_batches:
            scatter(self.forward(one.to(self.runtime.device), temperature).logprobs, one, found)
        return found

    def score_segments(self, segments: Sequence[Segment], temperature: float = 1.0) -> list[list[float]]:
        """Log-probs of each segment's sampled ids after its context; an empty list for a segment without any."""
        sequences = as_sequences([segment for segment in segments if segment.sampled_ids])
        rows = iter(self.score(sequences, self.pack(sequences), temperature))
        return [next(rows).tolist() if segment.sampled_ids else [] for segment in segments]

    def _can_pack(self) -> bool:
        """Whether rows hold several sequences: as configured, and where a trial gives the same log-probs."""
        wanted = self.cfg.packing
        if wanted == "off":
            return False
        reason = packing_obstacle(self.forward.config) or self._packing_trial()
        if reason is None:
            return True
        name = type(self.policy.causal_lm).__name__
        if wanted == "on":
            raise refuse_packing(name, reason)
        logger.warning("%s cannot be packed (%s): every sequence has a row of its own", name, reason)
        return False

    def _packing_trial(self) -> str | None:
        """Packs a few of the model's own samples and compares; the reason against packing, or None."""
        segments = own_samples(self.policy, self.runtime, [self._some_ids()] * 3, 6)
        sequences = as_sequences(segments)
        packed = [
            pack(
                sequences,
                micro_batch_tokens=1024,
                packing=packing,
                share_prefix=self.cfg.share_prefix and self.forward.attention != "flash_attention_2",
            )
            for packing in (True, False)
        ]
        try:
            difference = self.forward.check_packing(self._with_spans(packed[0][0]), packed[1][0])
        except (TypeError, ValueError, RuntimeError, KeyError) as error:
            return f"its attention refuses packed rows: {' '.join(str(error).split())[:120]}"
        size = (self.runtime.compute_dtype or self.runtime.param_dtype).itemsize
        if difference <= PACKING_TOLERANCE[size]:
            return None
        if not difference <= 10 * rounding(self.policy, self.runtime, segments):
            return f"packed log-probs differ by {difference:.2g} nats"
        return None

    def _some_ids(self) -> list[int]:
        """The tokens of an ordinary text: what a model makes of special tokens in a row may be anything."""
        ids = self.policy.tokenizer(TEXT)["input_ids"] if self.policy.tokenizer is not None else []
        return [number for number in ids if number < self.policy.vocabulary] or [0]


def as_sequences(segments: Sequence[Segment]) -> list[TrainSequence]:
    """Segments as sequences to score: every sampled token counts, equal contexts are shared."""
    return [
        TrainSequence(
            completion=number,
            group=0,
            ids=np.array(segment.context_ids + segment.sampled_ids, dtype=np.int64),
            context=len(segment.context_ids),
            mask=np.ones(len(segment.sampled_ids), dtype=np.bool_),
            sampler_logprobs=np.zeros(len(segment.sampled_ids), dtype=np.float32),
            advantages=np.zeros(len(segment.sampled_ids)),
            completion_tokens=len(segment.sampled_ids),
        )
        for number, segment in enumerate(segments)
    ]
