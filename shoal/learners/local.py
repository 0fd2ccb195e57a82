"""The learner in one process on one device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from logging import getLogger
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.algorithms.logprobs import TokenLogprobs
from shoal.algorithms.losses import policy_loss, zero_advantage_is_free
from shoal.algorithms.measures import Measures
from shoal.algorithms.micro_batch import MicroBatch
from shoal.config import ShoalConfig
from shoal.errors import ConfigError
from shoal.learners.base import Learner, Watcher
from shoal.learners.heap import bound_heap
from shoal.learners.lora import merged_weights, plain_weights
from shoal.learners.model import Policy
from shoal.learners.optimizer import PolicyOptimizer, on_cpu
from shoal.learners.own_tokens import own_samples, rounding
from shoal.learners.passes import Passes
from shoal.learners.saved import LEARNER, read_learner
from shoal.learners.step import Minibatch, NonFiniteError, TokenTable, minibatches, skipped_share
from shoal.models.info import ModelInfo
from shoal.runtime import Runtime
from shoal.types import Batch, Segment
from shoal.wire.buffers import write_buffer
from shoal.wire.snapshot import DeltaSize, Snapshot
from shoal.wire.stream import Meeting, WeightGroup, WeightSpec, bucket_size, send

logger = getLogger(__name__)

LEAST_SCALE = 2.0**-10
"""Below this loss scale an overflow is not the scale's doing."""


class LocalLearner(Learner):
    """Trains a policy on the device that holds it."""

    def __init__(self, policy: Policy, cfg: ShoalConfig, runtime: Runtime, total_steps: int) -> None:
        """`total_steps` counts batches of the whole run; the schedule is made from it.

        Raises:
            ConfigError: packing was asked for and this model cannot be packed, or the optimizer cannot be had.
        """
        self.policy = policy
        self.cfg = cfg
        self.runtime = runtime
        self.version = 0
        self.group: tuple[Meeting, WeightGroup] | None = None
        bound_heap(policy.causal_lm.get_decoder(), runtime)
        self.passes = Passes(policy, cfg.learner, runtime)
        self.forward: Callable[..., TokenLogprobs] = self.passes.forward
        steps = total_steps * cfg.algorithm.num_epochs * cfg.algorithm.num_minibatches
        self.optimizer = PolicyOptimizer(policy.model, cfg.optimizer, runtime, steps)

    @property
    def info(self) -> ModelInfo:
        return self.policy.info

    def train(self, batch: Batch, watcher: Watcher | None = None) -> dict[str, float]:
        """See `Learner.train`.

        Metrics beside those of `Measures.metrics`: `train/grad_norm` (mean over optimizer steps, before clipping),
        `train/lr` (of the last optimizer step), `train/optimizer_steps`, `train/skipped_steps` (overflows under loss
        scaling, in this batch; each was done again), `train/seconds`, `train/tokens` (trained tokens of the batch,
        skipped completions included), `train/forwarded_tokens` (tokens that went through the model with gradient,
        padding included),
        `train/tokens_per_second` and `train/forwarded_tokens_per_second` (the former two over seconds),
        `train/padding` (padding over forwarded tokens).

        Raises:
            NonFiniteError: a loss or a gradient is not finite; the weights are those before the optimizer step.
        """
        started = perf_counter()
        algorithm = self.cfg.algorithm
        free = self.cfg.learner.skip_zero_advantage and zero_advantage_is_free(algorithm)
        epochs = self._divided(batch, free)
        total = sum(len(parts) for parts, _ in epochs)
        old = self._old_logprobs(batch, epochs[0], several=total > 1)
        measures = Measures(max(total, 1))
        if free:
            self._measure_skipped(batch, measures, passes=algorithm.num_epochs)
        norms, skipped, lr = [], self.optimizer.skipped, self.optimizer.lr
        for parts, packed in epochs:
            for part, micro_batches in zip(parts, packed, strict=True):
                lr = self.optimizer.lr
                norms.append(self._step(part, micro_batches, _table(part, old), batch.temperature, measures, watcher))
        self.version += 1
        seconds = perf_counter() - started
        every = [one for _, packed in epochs for some in packed for one in some]
        forwarded = sum(one.until.numel() for one in every)
        padding = sum(int((one.until < 0).sum()) if len(one.targets) else one.until.numel() for one in every)
        forwarded, padding = self._over_ranks(measures, forwarded, padding)
        return {
            **measures.metrics(),
            "train/grad_norm": sum(norms) / max(len(norms), 1),
            "train/lr": lr,
            "train/optimizer_steps": float(len(norms)),
            "train/skipped_steps": float(self.optimizer.skipped - skipped),
            "train/seconds": seconds,
            "train/tokens": float(batch.trained_tokens),
            "train/forwarded_tokens": float(forwarded),
            "train/tokens_per_second": batch.trained_tokens / seconds,
            "train/forwarded_tokens_per_second": forwarded / seconds,
            "train/padding": padding / max(forwarded, 1),
        }

    def _divided(self, batch: Batch, free: bool) -> list[tuple[list[Minibatch], list[list[MicroBatch]]]]:
        """For each epoch, its minibatches and their micro-batches. Later epochs' are shuffled by the seed."""
        algorithm = self.cfg.algorithm
        epochs: list[tuple[list[Minibatch], list[list[MicroBatch]]]] = []
        for epoch in range(algorithm.num_epochs):
            if epoch and algorithm.num_minibatches == 1:
                epochs.append(epochs[0])
                continue
            seed = f"{self.cfg.run.seed}/{self.version}/{epoch}" if epoch else None
            whole = minibatches(batch, algorithm.num_minibatches, algorithm.aggregation, free, seed)
            parts = [self._share(part) for part in whole]
            epochs.append((parts, [self.passes.pack(part.sequences) for part in parts]))
        return epochs

    def _share(self, part: Minibatch) -> Minibatch:
        """What this process trains on of an optimizer step: all of it, where it is the only one."""
        return part

    def _over_ranks(self, measures: Measures, forwarded: int, padding: int) -> tuple[int, int]:
        """Adds what other processes have measured, and the tokens that they forwarded."""
        return forwarded, padding

    def _old_logprobs(
        self, batch: Batch, first: tuple[list[Minibatch], list[list[MicroBatch]]], several: bool
    ) -> dict[int, NDArray[np.float32]] | None:
        """l_old of each trained sequence, by its place in the batch; None where it is the training pass's own."""
        if self._old_is_sampler:
            return {place: sequence.sampler_logprobs for place, sequence in enumerate(batch.sequences)}
        if not several:
            return None
        found: dict[int, NDArray[np.float32]] = {}
        for part, micro_batches in zip(*first, strict=True):
            rows = self.passes.score(part.sequences, micro_batches, batch.temperature)
            found |= dict(zip(part.places, rows, strict=True))
        return found

    @torch.no_grad()
    def _measure_skipped(self, batch: Batch, measures: Measures, passes: int) -> None:
        """Measures a share of the completions whose passes are skipped, in place of all, `passes` times."""
        part, stands_for = skipped_share(batch)
        if part is None:
            return
        part = self._share(part)
        table = TokenTable(part, [one.sampler_logprobs for one in part.sequences] if self._old_is_sampler else None)
        for one in self.passes.pack(part.sequences):
            found = self.passes.forward(one.to(self.runtime.device), batch.temperature, entropy=True)
            measures.add(table.terms(one, found), {}, self.cfg.algorithm, stands_for=stands_for * passes)

    @property
    def _old_is_sampler(self) -> bool:
        return self.cfg.algorithm.old_logprobs == "sampler"

    def _step(
        self,
        part: Minibatch,
        micro_batches: Sequence[MicroBatch],
        table: TokenTable,
        temperature: float,
        measures: Measures,
        watcher: Watcher | None,
    ) -> float:
        """One optimizer step; returns the gradient norm. Under loss scaling a gradient that overflows is computed
        again at half the scale."""
        before = measures.mark()
        while True:
            self.optimizer.zero_grad()
            losses = []
            with self._training_mode():
                for one in micro_batches:
                    losses.append(self._backward(one, table, temperature, measures))
            norm = self.optimizer.gradient_norm()
            # The one place of the step that waits for the device.
            finite = torch.stack([norm.float(), *(loss.float() for loss in losses)]).isfinite().tolist()
            if all(finite):
                break
            scale = self.optimizer.scale
            if not all(finite[1:]) or not self.runtime.loss_scaling or scale < LEAST_SCALE:
                self._refuse(part, temperature, "gradient" if all(finite[1:]) else "loss")
            self.optimizer.overflown()
            measures.back_to(before)
            logger.warning(
                "optimizer step %d: the fp16 gradient overflows at loss scale %g; the batch is done again at %g",
                self.optimizer.steps + 1,
                scale,
                self.optimizer.scale,
            )
        self.optimizer.step(norm, watcher)
        self.optimizer.zero_grad()
        return float(norm)

    def _backward(self, batch: MicroBatch, table: TokenTable, temperature: float, measures: Measures | None) -> Tensor:
        algorithm = self.cfg.algorithm
        found = self.forward(batch.to(self.runtime.device), temperature, entropy=True)
        terms = table.terms(batch, found)
        loss, parts = policy_loss(terms, algorithm)
        self.optimizer.backward(loss)
        if measures is not None:
            measures.add(terms, parts, algorithm)
        return loss.detach()

    def _refuse(self, part: Minibatch, temperature: float, what: str) -> None:
        """Finds the completions behind a loss or gradient that is not finite, one at a time, and raises."""
        guilty = []
        scaled = self.runtime.loss_scaling
        if scaled:
            self.optimizer.overflown()  # ends the step that failed
        for number in dict.fromkeys(sequence.completion for sequence in part.sequences):
            chosen = [place for place, sequence in enumerate(part.sequences) if sequence.completion == number]
            alone = Minibatch(
                [part.sequences[place] for place in chosen],
                [part.weights[place] for place in chosen],
                [part.places[place] for place in chosen],
            )
            self.optimizer.zero_grad()
            old = None
            if self.cfg.algorithm.old_logprobs == "sampler":
                old = [sequence.sampler_logprobs for sequence in alone.sequences]
            with self._training_mode():
                losses = [
                    self._backward(one, TokenTable(alone, old), temperature, None)
                    for one in self.passes.pack(alone.sequences)
                ]
            norm = self.optimizer.gradient_norm()
            if scaled:
                self.optimizer.overflown()
            if not all(bool(loss.isfinite()) for loss in [norm, *losses]):
                guilty.append(number)
        self.optimizer.zero_grad()
        where = f"completions {guilty}" if guilty else "no single completion: their sum overflows"
        raise NonFiniteError(
            f"the {what} of optimizer step {self.optimizer.steps + 1} is not finite, from {where}; the weights are as "
            "before it. Lower optimizer.lr, set optimizer.max_grad_norm, or compute with runtime.mixed_precision=none",
            guilty,
        )

    @contextmanager
    def _training_mode(self) -> Iterator[None]:
        """Adapter dropout and gradient checkpointing on; off again after."""
        self.policy.model.train()
        try:
            yield
        finally:
            self.policy.model.eval()

    def trained_weights(self) -> dict[str, Tensor]:
        """The trained parameters by the names of the policy's model, in float32: the masters where there are some."""
        return dict(zip(self.optimizer.names, self.optimizer.masters, strict=True))

    def logprobs(self, segments: Sequence[Segment], temperature: float = 1.0) -> list[list[float]]:
        return self.passes.score_segments(segments, temperature)

    def sample(self, contexts: Sequence[list[int]], count: int) -> list[Segment]:
        return own_samples(self.policy, self.runtime, contexts, count)

    def rounding(self, segments: Sequence[Segment]) -> float:
        return rounding(self.policy, self.runtime, segments)

    def save(self, folder: Path) -> None:
        weights = {name: value for name, value in self.policy.model.named_parameters() if value.requires_grad}
        state = {"version": self.version, "weights": on_cpu(weights), "optimizer": self.optimizer.state_dict()}
        with (folder / LEARNER).open("wb") as file:
            torch.save(state, file)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        state = read_learner(folder)
        weights = {name: value for name, value in self.policy.model.named_parameters() if value.requires_grad}
        if weights.keys() != state["weights"].keys():
            raise ConfigError(
                "the checkpoint's trained weights are not those of this model: resume with the model.* settings "
                "that it was written with"
            )
        for name, value in weights.items():
            value.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.version = state["version"]

    def export(self, folder: Path) -> None:
        self.policy.model.save_pretrained(folder)
        self.policy.tokenizer.save_pretrained(folder)

    def weight_specs(self) -> list[WeightSpec]:
        return [
            WeightSpec(name, tuple(value.shape), str(value.dtype).removeprefix("torch."))
            for name, value in plain_weights(self.policy.causal_lm)
        ]

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The weights of `weight_specs`, in its order. Each is whole, and valid until the next is asked for."""
        return merged_weights(self.policy.causal_lm)

    def join(self, meeting: Meeting) -> None:
        self.leave()
        self.group = meeting, meeting.join(0, self._wire_device)

    def send_weights(self, meeting: Meeting, version: int) -> None:
        self.send_from(meeting, self.named_weights(), version)

    def send_from(self, meeting: Meeting, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
        """`send_weights` of these, which are all of them."""
        if self.cfg.weight_sync.delta:
            weights = self.snapshot.noting(weights, version)
        with self._in_group(meeting) as group:
            send(group, weights, bucket_size(self.weight_specs()), self._wire_device)

    @cached_property
    def snapshot(self) -> Snapshot:
        """What was sent last, with `weight_sync.delta`."""
        return Snapshot(self.weight_specs(), torch.get_num_threads())

    def compare_weights(self, version: int) -> DeltaSize:
        return self.snapshot.compare(self.named_weights(), version)

    def send_delta(self, meeting: Meeting) -> None:
        with self._in_group(meeting) as group:
            self.snapshot.send_delta(group, self._wire_device)

    @contextmanager
    def _in_group(self, meeting: Meeting) -> Iterator[WeightGroup]:
        """The group, to send to. Where a peer is lost it is left: those that live would wait for what does not come any
        more, until they are taken for hanging."""
        if self.group is None or self.group[0] != meeting:
            raise RuntimeError(f"the learner is not in the group {meeting.name}")
        group = self.group[1]
        try:
            yield group
        except RuntimeError:
            self.leave()
            group.drop()
            raise

    def write_weights(self, file: Path, version: int) -> None:
        write_buffer(file, self.weight_specs(), self.named_weights(), version)

    @property
    def _wire_device(self) -> torch.device:
        # NCCL carries what is on a GPU; everything else goes through memory.
        return self.runtime.device if self.runtime.device.type == "cuda" else torch.device("cpu")

    def leave(self) -> None:
        self.group = None

    def close(self) -> None:
        self.leave()
        if "snapshot" in vars(self):  # made where it was needed alone
            self.snapshot.close()

    def save_merged(self, folder: Path) -> None:
        if self.policy.lora:
            # What PEFT put around the layers is not written; the tensors are given by their own names.
            weights = {name: value.detach().cpu() for name, value in self.named_weights()}
            self.policy.causal_lm.save_pretrained(folder, state_dict=weights)
        else:
            self.policy.model.save_pretrained(folder)
        self.policy.tokenizer.save_pretrained(folder)

    def save_adapter(self, folder: Path) -> None:
        self.policy.model.save_pretrained(folder, save_embedding_layers=False)

    @torch.no_grad()
    def move_weights(self, views: Mapping[str, Tensor]) -> None:
        """See `Learner.move_weights`.

        Raises:
            ConfigError: the memory has another dtype or device than the learner's weights.
        """
        for name, parameter in plain_weights(self.policy.causal_lm):
            view = views[name]
            if view.dtype != parameter.dtype or view.device != parameter.device:
                raise ConfigError(
                    f"{name} is {parameter.dtype} on {parameter.device} here, but {view.dtype} on {view.device} in the "
                    "engine: shared memory needs the same; set model.dtype, or the engine's: engine.vllm.dtype, or "
                    "--dtype of shoal serve vllm where that was started by hand"
                )
            view.copy_(parameter)
            parameter.data = view


def _table(part: Minibatch, old: Mapping[int, NDArray[np.float32]] | None) -> TokenTable:
    return TokenTable(part, None if old is None else [old[place] for place in part.places])
