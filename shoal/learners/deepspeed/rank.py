"""One rank of a DeepSpeed learner: the local learner's mathematics on this rank's groups, with its weights in ZeRO."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from logging import getLogger
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from transformers.integrations import HfDeepSpeedConfig

from shoal.algorithms.losses import policy_loss
from shoal.algorithms.measures import MAXIMA, SUMS, Measures
from shoal.algorithms.micro_batch import MicroBatch
from shoal.config import ShoalConfig
from shoal.errors import ConfigError
from shoal.learners.base import Watcher
from shoal.learners.cpu.mixed import MixedLinear
from shoal.learners.deepspeed.optimizer import RankOptimizer
from shoal.learners.deepspeed.passes import (
    EngineForward,
    PolicyModule,
    RankPasses,
    empty_micro_batch,
    most_of_ranks,
    share_of,
)
from shoal.learners.deepspeed.reference import RankReference
from shoal.learners.deepspeed.saved import read_parts, write_part
from shoal.learners.deepspeed.settings import deepspeed_settings
from shoal.learners.deepspeed.weights import OptimizerState, gathered_weights, is_sharded, shape_of, whole
from shoal.learners.forward import LogprobHead
from shoal.learners.local import LEAST_SCALE, LocalLearner
from shoal.learners.lora import plain_weights
from shoal.learners.model import Policy, load_policy
from shoal.learners.optimizer import make_adamw
from shoal.learners.step import Minibatch, NonFiniteError, TokenTable
from shoal.models.adapters import adapter_base
from shoal.runtime import Runtime, prepare_allocator, prepare_process, resolve_runtime
from shoal.types import Batch, Segment
from shoal.wire.snapshot import DeltaSize
from shoal.wire.stream import Meeting, WeightSpec

logger = getLogger(__name__)


def open_rank(cfg: ShoalConfig, address: str, rank: int, world: int, total_steps: int) -> RankLearner:
    """Joins the ranks of a learner at `address` (HOST:PORT), loads the policy and gives it to DeepSpeed.

    Raises:
        ConfigError: the model, or what DeepSpeed is asked for, cannot be had.
        RuntimeError: not all ranks came within `learner.timeout`.
    """
    runtime = resolve_runtime(cfg.runtime, cfg.model)
    prepare_process(cfg.runtime)
    torch.manual_seed(cfg.run.seed)  # adapters start alike on every rank
    # DeepSpeed reports its configuration and each part that it loads.
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # For inference alone; it would be compiled here, under a lock that a killed process leaves behind.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend="nccl" if runtime.device.type == "cuda" else "gloo",
        auto_mpi_discovery=False,
        init_method=f"tcp://{address}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=cfg.learner.timeout),
        verbose=False,
    )
    settings = deepspeed_settings(cfg, runtime)
    # While this lives, from_pretrained loads each weight into its shards. An adapter is merged into a whole base.
    sharding = HfDeepSpeedConfig(settings) if loads_in_shards(cfg, runtime) else None
    policy = load_policy(cfg.model, runtime)
    del sharding
    prepare_allocator(cfg.runtime, policy.info.count_parameters()[0])
    learner = RankLearner(policy, cfg, runtime, settings, total_steps)
    if cfg.algorithm.kl_coef and cfg.reference.kind == "model":
        learner.reference = RankReference(policy, learner.passes, cfg, runtime, settings)
    return learner


def loads_in_shards(cfg: ShoalConfig, runtime: Runtime) -> bool:
    """Whether no rank ever holds the whole model. In 16 bits transformers would round the tables of positions too, and
    adapters are made, or merged, on a whole base."""
    whole_first = cfg.model.train == "lora" or adapter_base(cfg.model.name) or runtime.param_dtype.itemsize == 2
    return cfg.learner.zero_stage == 3 and not whole_first


class RankLearner(LocalLearner):
    """Trains a policy together with the other ranks. Every method is called on all of them, with the same arguments,
    except where it says otherwise."""

    optimizer: RankOptimizer  # type: ignore[assignment]
    passes: RankPasses
    reference: RankReference | None = None

    def __init__(
        self, policy: Policy, cfg: ShoalConfig, runtime: Runtime, settings: dict[str, Any], total_steps: int
    ) -> None:
        """`settings` are DeepSpeed's own; `total_steps` counts batches of the whole run."""
        self.policy = policy
        self.cfg = cfg
        self.runtime = runtime
        self.version = 0
        self.group = None
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        head = LogprobHead(policy.causal_lm.get_output_embeddings())
        trained = {name: one for name, one in policy.model.named_parameters() if one.requires_grad}
        module = PolicyModule(policy.model, head)
        # DeepSpeed counts a step's tensors by their shape, which is that of the shards where they are.
        base = make_adamw(list(trained.values()), cfg.optimizer, runtime, dimensions=lambda one: len(shape_of(one)))
        engine, *_ = deepspeed.initialize(model=module, optimizer=base, config=settings)
        self.engine = engine
        policy.model.eval()
        self.passes = RankPasses(policy, cfg.learner, runtime, head)
        self.forward = EngineForward(engine, self.passes.forward)
        steps = total_steps * cfg.algorithm.num_epochs * cfg.algorithm.num_minibatches
        self.optimizer = RankOptimizer(engine, cfg.optimizer, steps, self.world)
        self.state = OptimizerState(engine, trained)
        torch.manual_seed(cfg.run.seed + self.rank)  # dropout of adapters differs between ranks

    def _share(self, part: Minibatch) -> Minibatch:
        return share_of(part, self.rank, self.world)

    def _old_logprobs(
        self, batch: Batch, first: tuple[list[Minibatch], list[list[MicroBatch]]], several: bool
    ) -> dict[int, NDArray[np.float32]] | None:
        """Those of all ranks: a later epoch may give a group to another one."""
        mine = super()._old_logprobs(batch, first, several)
        if mine is None or self._old_is_sampler:
            return mine
        lengths = [len(sequence.mask) for sequence in batch.sequences]
        rows = [mine.get(place, np.zeros(length, dtype=np.float32)) for place, length in enumerate(lengths)]
        flat = torch.from_numpy(np.concatenate(rows)).to(self.runtime.device)
        dist.all_reduce(flat)  # a place is scored by one rank, and 0 on the others
        found = np.split(flat.cpu().numpy(), np.cumsum(lengths)[:-1])
        return dict(enumerate(found))

    def _over_ranks(self, measures: Measures, forwarded: int, padding: int) -> tuple[int, int]:
        own = measures.state().to(self.runtime.device)
        counts = torch.tensor([forwarded, padding], device=self.runtime.device)
        every = [torch.empty_like(own) for _ in range(self.world)]
        dist.all_gather(every, own)
        dist.all_reduce(counts)
        measures.back_to((None, None))
        for state in every:
            if state[SUMS.index("tokens")] > 0:
                measures.merge(state)
        assert len(own) == len(SUMS) + len(MAXIMA)
        return int(counts[0]), int(counts[1])

    def _step(
        self,
        part: Minibatch,
        micro_batches: Sequence[MicroBatch],
        table: TokenTable,
        temperature: float,
        measures: Measures,
        watcher: Watcher | None,
    ) -> float:
        before = measures.mark()
        # Without a pass ZeRO-3 has no gradient to step on; where no completion has an advantage, that is 0.
        micro_batches = micro_batches or [empty_micro_batch()]
        while True:
            with self._training_mode():
                losses = [self._backward(one, table, temperature, measures) for one in micro_batches]
            if not self._on_all_ranks(all(bool(loss.isfinite()) for loss in losses)):
                self._forget_gradient()
                self._refuse(part, temperature, "loss")
            if self.optimizer.step():
                self._weights_changed()
                return self.optimizer.norm
            # A loss that overflowed in fp16 has made DeepSpeed halve its scale.
            if not self.runtime.loss_scaling or self.optimizer.scale < LEAST_SCALE:
                self._refuse(part, temperature, "gradient")
            self.optimizer.skipped += 1
            measures.back_to(before)
            logger.warning(
                "optimizer step %d: the fp16 gradient overflows; the batch is done again at loss scale %g",
                self.optimizer.steps + 1,
                self.optimizer.scale,
            )

    def _on_all_ranks(self, true: bool) -> bool:
        found = torch.tensor(int(true), device=self.runtime.device)
        dist.all_reduce(found, dist.ReduceOp.MIN)
        return bool(found)

    def _forget_gradient(self) -> None:
        """Makes the gradient anything but finite and steps: DeepSpeed then leaves the weights and forgets it."""
        with self._training_mode():
            logprobs = self.forward(one_token().to(self.runtime.device)).logprobs
            self.optimizer.backward(logprobs.sum() * torch.nan)
        assert not self.optimizer.step(), "DeepSpeed stepped on a gradient of NaN"

    @torch.no_grad()
    def _refuse(self, part: Minibatch, temperature: float, what: str) -> None:
        """Finds the completions behind a loss that is not finite, one at a time, and raises the same on all ranks."""
        places: dict[int, list[int]] = {}
        for place, sequence in enumerate(part.sequences):
            places.setdefault(sequence.completion, []).append(place)
        numbers = list(places)
        largest = most_of_ranks(max(numbers, default=0), self.runtime.device)
        marks = torch.zeros(largest + 1, dtype=torch.int32, device=self.runtime.device)
        for turn in range(most_of_ranks(len(numbers), self.runtime.device)):
            held = places[numbers[turn]] if turn < len(numbers) else []
            alone = Minibatch([part.sequences[place] for place in held], [part.weights[place] for place in held], held)
            if not self._is_finite(alone, temperature):
                marks[numbers[turn]] = 1
        dist.all_reduce(marks, dist.ReduceOp.MAX)
        guilty = marks.nonzero().flatten().tolist()
        where = f"completions {guilty}" if guilty else "no single completion's loss"
        raise NonFiniteError(
            f"the {what} of optimizer step {self.optimizer.steps + 1} is not finite, from {where}; the weights are as "
            "before it. Lower optimizer.lr, set optimizer.max_grad_norm, or compute with runtime.mixed_precision=none",
            guilty,
        )

    def _is_finite(self, part: Minibatch, temperature: float) -> bool:
        """Whether the loss of these sequences is; all ranks call it, with their own."""
        old = [one.sampler_logprobs for one in part.sequences] if self._old_is_sampler else None
        table = TokenTable(part, old)
        losses = []
        for one in self.passes.pack(part.sequences):
            found = self.forward(one.to(self.runtime.device), temperature, entropy=True)
            losses.append(policy_loss(table.terms(one, found), self.cfg.algorithm)[0])
        return all(bool(loss.isfinite()) for loss in losses)

    def _weights_changed(self) -> None:
        """DeepSpeed writes weights past their version counters, by which copies in 16 bits know that they are old."""
        for module in self.policy.model.modules():
            if isinstance(module, MixedLinear):
                module._copy = None

    def logprobs(self, segments: Sequence[Segment], temperature: float = 1.0) -> list[list[float]]:
        """Of this rank's part of the segments, a run of consecutive ones: those of all ranks, one after another, are
        the whole."""
        return self.passes.score_share(segments, temperature)

    def reference_logprobs(self, segments: Sequence[Segment]) -> list[list[float]]:
        """The same by the reference, at temperature 1."""
        assert self.reference is not None, "algorithm.kl_coef opens it"
        return self.reference.logprobs(segments)

    def trained_weights(self) -> dict[str, Tensor]:
        raise ConfigError("reference.polyak_every needs learner=local")

    def save(self, folder: Path) -> None:
        """Writes this rank's part of the checkpoint: every `world`-th trained tensor, whole."""
        moments = self.optimizer.steps > 0
        tensors = {}
        if moments:
            self.state.link()
        for index, name in enumerate(self.state.parameters):
            found = self.state.read(name, moments)
            if index % self.world == self.rank:
                tensors[name] = {key: value.cpu().clone() for key, value in found.items()}
        counts = {"version": self.version, "steps": self.optimizer.steps, "skipped": self.optimizer.skipped}
        write_part(folder, self.rank, self.world, tensors, counts | {"scale": self.optimizer.scale})

    def load(self, folder: Path) -> None:
        """Reads the parts that any number of ranks wrote, at any stage."""
        counts, tensors = read_parts(folder)
        if tensors.keys() != self.state.parameters.keys():
            raise ConfigError(
                "the checkpoint's trained weights are not those of this model: resume with the model.* settings "
                "that it was written with"
            )
        self.state.begin(counts["steps"])
        for name in self.state.parameters:
            self.state.write(name, tensors[name])
        self.optimizer.go_to(counts["steps"], counts["skipped"])
        self.optimizer.scale_from(counts["scale"])
        self.version = counts["version"]
        self._weights_changed()

    def export(self, folder: Path) -> None:
        """Writes the model or the adapter from rank 0, which holds it whole in memory for that time."""
        trained = self.cfg.model.train == "lora"
        held = {name: one for name, one in self.policy.model.named_parameters() if one.requires_grad or not trained}
        weights = {}
        for name, one in held.items():
            with whole([one]):
                if self.rank == 0:
                    weights[name] = one.detach().cpu().clone()
        if self.rank == 0:
            self.policy.model.save_pretrained(folder, state_dict=weights)
            self.policy.tokenizer.save_pretrained(folder)
        dist.barrier()

    def save_merged(self, folder: Path) -> None:
        raise ConfigError("learner=deepspeed writes no merged model")

    def weight_specs(self) -> list[WeightSpec]:
        return [
            WeightSpec(name, shape_of(value), str(value.dtype).removeprefix("torch."))
            for name, value in plain_weights(self.policy.causal_lm)
        ]

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        return gathered_weights(self.policy.causal_lm)

    def join(self, meeting: Meeting) -> None:
        """Of rank 0 alone; the others have nothing to do with the group."""
        if self.rank == 0:
            super().join(meeting)

    def send_weights(self, meeting: Meeting, version: int) -> None:
        if self.rank == 0:
            with self._all_gathered() as weights:
                self.send_from(meeting, weights, version)
        else:
            self._give_shards()

    def compare_weights(self, version: int) -> DeltaSize | None:  # type: ignore[override]
        """What rank 0 finds, which alone has a copy."""
        if self.rank == 0:
            with self._all_gathered() as weights:
                return self.snapshot.compare(weights, version)
        self._give_shards()
        return None

    def send_delta(self, meeting: Meeting) -> None:
        """Of rank 0 alone: what it sends is gathered already."""
        if self.rank == 0:
            super().send_delta(meeting)

    @contextmanager
    def _all_gathered(self) -> Iterator[Iterator[tuple[str, Tensor]]]:
        """The weights on rank 0. Where not all are taken, as where a peer was lost, they are gathered nevertheless: the
        other ranks gather on, and wait for this one."""
        weights = self.named_weights()
        try:
            yield weights
        finally:
            for _ in weights:
                pass

    def _give_shards(self) -> None:
        """Goes through the weights beside rank 0, which gathers them."""
        if any(is_sharded(one) for _, one in plain_weights(self.policy.causal_lm)):
            for _ in self.named_weights():
                pass

    def pid(self) -> int:
        """The process of this rank."""
        return os.getpid()

    def counted(self) -> int:
        """The number of trained batches."""
        return self.version

    def close(self) -> None:
        self.leave()
        self.engine.destroy()
        dist.destroy_process_group()


def one_token() -> MicroBatch:
    """A micro-batch of one trained token."""
    first = torch.zeros(1, dtype=torch.int64)
    return replace(empty_micro_batch(), source=first, targets=first, sequence=first, token=first)
