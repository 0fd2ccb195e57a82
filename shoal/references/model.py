"""The reference as a model in this process, on the learner's device or one of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from logging import getLogger
from typing import Any

import torch
from torch import Tensor

from shoal.config import ShoalConfig
from shoal.errors import ConfigError
from shoal.learners.lora import adapted_weights
from shoal.learners.model import Policy, compute_as_learners_do, load_frozen
from shoal.learners.optimizer import on_cpu
from shoal.learners.passes import Passes
from shoal.models.adapters import adapter_base
from shoal.references.base import Reference, unscored_segments
from shoal.runtime import Runtime
from shoal.types import Group

logger = getLogger(__name__)


class ModelReference(Reference):
    """The policy as it was when this was made, or another model.

    Under a new LoRA adapter and without a name it is the policy's own base with the adapter switched off, which takes
    no memory; all others are a second model. Make it before the learner loads a checkpoint.
    """

    def __init__(
        self,
        policy: Policy,
        cfg: ShoalConfig,
        runtime: Runtime,
        trained: Callable[[], Mapping[str, Tensor]] | None = None,
    ) -> None:
        """`trained` gives the policy's trained weights by name, in float32, to follow; None: as the model has them.

        Raises:
            ConfigError: the model cannot be loaded or cannot follow the policy (`polyak_every`).
        """
        runtime = runtime.of_reference()
        self.policy = policy
        self.cfg = cfg.reference
        self.trained = trained
        # An adapter that was there before the run is part of the policy as it was at the start.
        fresh = policy.lora and adapter_base(cfg.model.name) is None
        self.borrowed = fresh and not cfg.reference.name and not cfg.reference.polyak_every
        lora = False
        if cfg.reference.name:
            model = load_frozen(
                cfg.reference.name,
                cfg.reference.revision,
                cfg.model.trust_remote_code,
                runtime,
                any_attention=cfg.model.attention == "auto",
                key="reference.name",
            )
            compute_as_learners_do(model, model, runtime)
        elif self.borrowed:
            model = policy.model
        else:
            model, lora = deepcopy(policy.model).to(runtime.device), policy.lora
            if lora and cfg.reference.polyak_every:
                model, lora = model.merge_and_unload(), False
        self.own = policy if self.borrowed else Policy(model, policy.info, lora)
        if not self.borrowed:
            model.requires_grad_(False).eval()
        self.passes = Passes(self.own, cfg.learner, runtime)
        self.changed = False
        # What follows the policy, in float32: in 16 bits most of its small steps would round to nothing.
        self.average: dict[str, Tensor] = {}
        if self.cfg.polyak_every:
            mine = dict(model.named_parameters())
            self._check_same_weights(mine)
            self.average = {name: _at_least_float32(mine[name]) for name, _ in self._followed()}

    def score(self, groups: Sequence[Group]) -> None:
        segments = unscored_segments(groups)
        with self.policy.model.disable_adapter() if self.borrowed else nullcontext():
            found = self.passes.score_segments(segments)
        for segment, row in zip(segments, found, strict=True):
            segment.ref_logprobs = row

    @torch.no_grad()
    def follow(self, version: int) -> bool:
        """After every `polyak_every` trained batches: reference <- alpha policy + (1 - alpha) reference. True if so.

        Of an adapter the whole weights follow: the mean of two products is not the product of the means of A and B.
        """
        if not self.cfg.polyak_every or version % self.cfg.polyak_every:
            return False
        for name, value in self._followed():
            self.average[name].lerp_(value.to(self.average[name]), self.cfg.polyak_alpha)
        self._write()
        return True

    def _followed(self) -> Iterator[tuple[str, Tensor]]:
        if self.policy.lora:
            yield from adapted_weights(self.policy.causal_lm)
        elif self.trained is not None:
            yield from self.trained().items()
        else:
            yield from ((name, one) for name, one in self.policy.model.named_parameters() if one.requires_grad)

    def _write(self) -> None:
        mine = dict(self.own.model.named_parameters())
        for name, value in self.average.items():
            if value is not mine[name]:
                mine[name].copy_(value)
        self.changed = True

    def _check_same_weights(self, mine: Mapping[str, Tensor]) -> None:
        for name, value in self._followed():
            if name not in mine or mine[name].shape != value.shape:
                raise ConfigError(
                    f"reference.polyak_every needs the policy's architecture, but {self.cfg.name} has no "
                    f"weight {name} of shape {tuple(value.shape)}; leave reference.name out"
                )

    def state_dict(self) -> dict[str, Any]:
        """The weights that moved; nothing where none did, because the start can be loaded again."""
        return {"weights": on_cpu(self.average)} if self.changed else {}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`.

        Raises:
            ConfigError: the checkpoint's reference has moved, and this one does not follow the policy.
        """
        moved = state.get("weights", {})
        if moved.keys() - self.average.keys():
            raise ConfigError(
                "the checkpoint's reference has followed the policy (reference.polyak_every): resume with "
                "reference.polyak_every above 0; reference.polyak_alpha=0 keeps it where it is"
            )
        for name, value in moved.items():
            self.average[name].copy_(value)
        if moved:
            self._write()


def _at_least_float32(parameter: Tensor) -> Tensor:
    """The parameter itself, or a float32 copy where it has 16 bits."""
    return parameter.float() if parameter.dtype.itemsize == 2 else parameter
