"""The reference as a model in this process, on the learner's device."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from copy import deepcopy
from logging import getLogger
from typing import Any

import torch
from torch import Tensor

from shoal.config import ShoalConfig
from shoal.errors import ConfigError
from shoal.learners.lora import adapter_base
from shoal.learners.model import Policy, compute_as_learners_do, load_causal_lm
from shoal.learners.optimizer import on_cpu
from shoal.learners.passes import Passes
from shoal.references.base import Reference, unscored_segments
from shoal.runtime import Runtime
from shoal.types import Group

logger = getLogger(__name__)


class ModelReference(Reference):
    """The policy as it was when this was made, or another model.

    Under a new LoRA adapter and without a name it is the policy's own base with the adapter switched off, which takes
    no memory; all others are a second model. Make it before the learner loads a checkpoint.
    """

    def __init__(self, policy: Policy, cfg: ShoalConfig, runtime: Runtime) -> None:
        """Raises ConfigError where the model cannot be loaded or cannot follow the policy (`polyak_every`)."""
        self.policy = policy
        self.cfg = cfg.reference
        # An adapter that was there before the run is part of the policy as it was at the start.
        fresh = policy.lora and adapter_base(cfg.model.name) is None
        self.borrowed = fresh and not cfg.reference.name and not cfg.reference.polyak_every
        if cfg.reference.name:
            model = load_causal_lm(
                cfg.reference.name,
                cfg.reference.revision,
                cfg.model.trust_remote_code,
                runtime,
                any_attention=cfg.model.attention == "auto",
                key="reference.name",
            )
            compute_as_learners_do(model, model, runtime)
            own = Policy(model, policy.tokenizer, policy.vocabulary, policy.max_positions, lora=False)
        elif self.borrowed:
            own = policy
        else:
            own = Policy(
                deepcopy(policy.model), policy.tokenizer, policy.vocabulary, policy.max_positions, lora=policy.lora
            )
        if not self.borrowed:
            own.model.requires_grad_(False).eval()
        self.own = own
        self.passes = Passes(own, cfg.learner, runtime)
        self.changed = False
        if self.cfg.polyak_every:
            self._check_same_weights()

    def score(self, groups: Sequence[Group]) -> None:
        segments = unscored_segments(groups)
        with self.policy.model.disable_adapter() if self.borrowed else nullcontext():
            found = self.passes.score_segments(segments)
        for segment, row in zip(segments, found, strict=True):
            segment.ref_logprobs = row

    @torch.no_grad()
    def follow(self, version: int) -> bool:
        """After every `polyak_every` trained batches: reference <- alpha policy + (1 - alpha) reference. True if so."""
        if not self.cfg.polyak_every or version % self.cfg.polyak_every:
            return False
        mine = dict(self.own.model.named_parameters())
        for name, value in self._followed().items():
            mine[name].lerp_(value.to(mine[name].dtype), self.cfg.polyak_alpha)
        self.changed = True
        return True

    def _followed(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.policy.model.named_parameters() if value.requires_grad}

    def _check_same_weights(self) -> None:
        mine = {name: value.shape for name, value in self.own.model.named_parameters()}
        for name, value in self._followed().items():
            if mine.get(name) != value.shape:
                raise ConfigError(
                    f"reference.polyak_every needs the policy's architecture, but {self.cfg.name} has no "
                    f"weight {name} of shape {tuple(value.shape)}; leave reference.name out"
                )

    def state_dict(self) -> dict[str, Any]:
        """The weights that moved; nothing where none did, because the start can be loaded again."""
        if not self.changed:
            return {}
        mine = dict(self.own.model.named_parameters())
        return {"weights": on_cpu({name: mine[name] for name in self._followed()})}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        mine = dict(self.own.model.named_parameters())
        for name, value in state.get("weights", {}).items():
            mine[name].copy_(value)
        self.changed = bool(state)
