"""The learner in one process on one device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from logging import getLogger
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.algorithms.losses import policy_loss, zero_advantage_is_free
from shoal.algorithms.measures import Measures
from shoal.algorithms.micro_batch import MicroBatch
from shoal.config import ShoalConfig
from shoal.engines.weight_stream import WeightSpec
from shoal.errors import ConfigError
from shoal.learners.base import Learner, Writing
from shoal.learners.lora import merged_weights, plain_weights
from shoal.learners.model import Policy
from shoal.learners.optimizer import PolicyOptimizer, on_cpu
from shoal.learners.passes import Passes
from shoal.learners.step import Minibatch, NonFiniteError, TokenTable, minibatches
from shoal.runtime import Runtime
from shoal.types import Batch, Segment

logger = getLogger(__name__)


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
        self.passes = Passes(policy, cfg.learner, runtime)
        steps = total_steps * cfg.algorithm.num_epochs * cfg.algorithm.num_minibatches
        self.optimizer = PolicyOptimizer(policy.model, cfg.optimizer, runtime, steps)

    def train(self, batch: Batch, writing: Writing = nullcontext) -> dict[str, float]:
        """See `Learner.train`.

        Metrics beside those of `Measures.metrics`: `train/grad_norm` (mean over optimizer steps, before clipping),
        `train/lr` (of the last optimizer step), `train/optimizer_steps`, `train/skipped_steps` (overflows under loss
        scaling, in this batch), `train/seconds`, `train/tokens` (trained tokens of the batch, skipped completions
        included), `train/forwarded_tokens` (tokens that went through the model with gradient, padding included),
        `train/tokens_per_second` and `train/forwarded_tokens_per_second` (the former two over seconds),
        `train/padding` (padding over forwarded tokens).

        Raises:
            NonFiniteError: a loss or a gradient is not finite; the weights are those before the optimizer step.
        """
        started = perf_counter()
        algorithm = self.cfg.algorithm
        free = self.cfg.learner.skip_zero_advantage and zero_advantage_is_free(algorithm)
        parts = minibatches(batch, algorithm.num_minibatches, algorithm.aggregation, free)
        packed = [self.passes.pack(part.sequences) for part in parts]
        total = algorithm.num_epochs * len(parts)
        old = self._old_logprobs(parts, packed, batch.temperature, several=total > 1)
        measures = Measures(max(total, 1))
        tables = [TokenTable(*pair) if pair[0].sequences else None for pair in zip(parts, old, strict=True)]
        norms, skipped, lr = [], self.optimizer.skipped, self.optimizer.lr
        for _ in range(algorithm.num_epochs):
            for part, micro_batches, table in zip(parts, packed, tables, strict=True):
                lr = self.optimizer.lr
                norms.append(self._step(part, micro_batches, table, batch.temperature, measures, writing))
        self.version += 1
        seconds = perf_counter() - started
        forwarded = algorithm.num_epochs * sum(one.until.numel() for some in packed for one in some)
        padding = algorithm.num_epochs * sum(int((one.until < 0).sum()) for some in packed for one in some)
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

    def _old_logprobs(
        self, parts: Sequence[Minibatch], packed: Sequence[list[MicroBatch]], temperature: float, several: bool
    ) -> list[list[NDArray[np.float32]] | None]:
        """l_old of each minibatch's sequences; None where it is the training pass's own."""
        if self.cfg.algorithm.old_logprobs == "sampler":
            return [[sequence.sampler_logprobs for sequence in part.sequences] for part in parts]
        if not several:
            return [None for _ in parts]
        return [
            self.passes.score(part.sequences, micro_batches, temperature)
            for part, micro_batches in zip(parts, packed, strict=True)
        ]

    def _step(
        self,
        part: Minibatch,
        micro_batches: Sequence[MicroBatch],
        table: TokenTable | None,
        temperature: float,
        measures: Measures,
        writing: Writing,
    ) -> float:
        """One optimizer step; returns the gradient norm."""
        self.optimizer.zero_grad()
        losses = []
        with self._training_mode():
            for one in micro_batches:
                assert table is not None
                losses.append(self._backward(one, table, temperature, measures))
        norm = self.optimizer.gradient_norm()
        # The one place of the step that waits for the device.
        finite = torch.stack([norm.float(), *(loss.float() for loss in losses)]).isfinite().tolist()
        if not all(finite[1:]) or (not finite[0] and not self.runtime.loss_scaling):
            self._refuse(part, temperature, "gradient" if all(finite[1:]) else "loss")
        self.optimizer.skipped += not finite[0]
        self.optimizer.step(norm, writing)
        self.optimizer.zero_grad()
        return float(norm) if finite[0] else 0.0

    def _backward(self, batch: MicroBatch, table: TokenTable, temperature: float, measures: Measures | None) -> Tensor:
        algorithm = self.cfg.algorithm
        found = self.passes.forward(batch.to(self.runtime.device), temperature, entropy=True)
        terms = table.terms(batch, found)
        loss, parts = policy_loss(terms, algorithm)
        self.optimizer.backward(loss)
        if measures is not None:
            measures.add(terms, parts, algorithm)
        return loss.detach()

    def _refuse(self, part: Minibatch, temperature: float, what: str) -> None:
        """Finds the completions behind a loss or gradient that is not finite, one at a time, and raises."""
        guilty = []
        for number in dict.fromkeys(sequence.completion for sequence in part.sequences):
            chosen = [place for place, sequence in enumerate(part.sequences) if sequence.completion == number]
            alone = Minibatch(
                [part.sequences[place] for place in chosen],
                [part.weights[place] for place in chosen],
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
            if not all(bool(loss.isfinite()) for loss in losses) or not bool(self.optimizer.gradient_norm().isfinite()):
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

    def logprobs(self, segments: Sequence[Segment], temperature: float = 1.0) -> list[list[float]]:
        return self.passes.score_segments(segments, temperature)

    def state_dict(self) -> dict[str, Any]:
        weights = {name: value for name, value in self.policy.model.named_parameters() if value.requires_grad}
        return {"version": self.version, "weights": on_cpu(weights), "optimizer": self.optimizer.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
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

    def save_pretrained(self, folder: Path) -> None:
        self.policy.model.save_pretrained(folder)
        self.policy.tokenizer.save_pretrained(folder)

    def weight_specs(self) -> list[WeightSpec]:
        return [
            WeightSpec(name, tuple(value.shape), str(value.dtype).removeprefix("torch."))
            for name, value in plain_weights(self.policy.causal_lm)
        ]

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        return merged_weights(self.policy.causal_lm)

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
