"""The reference policy in the ranks: each scores its share of the completions, with weights in shards where the
policy's are."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import deepspeed
from transformers.integrations import HfDeepSpeedConfig

from shoal.config import ShoalConfig
from shoal.learners.deepspeed.passes import PolicyModule, RankPasses
from shoal.learners.forward import LogprobHead
from shoal.learners.model import Policy, compute_as_learners_do, load_frozen
from shoal.models.adapters import adapter_base
from shoal.runtime import Runtime
from shoal.types import Segment


class RankReference:
    """The policy as it was at the start of the run, or `reference.name`. Under a new LoRA adapter and without a name it
    is the policy's own base with the adapter switched off, which takes no memory. All ranks make it together.

    `settings` are DeepSpeed's for the policy.

    Raises:
        ConfigError: the model cannot be loaded.
    """

    def __init__(
        self, policy: Policy, passes: RankPasses, cfg: ShoalConfig, runtime: Runtime, settings: dict[str, Any]
    ) -> None:
        self.policy = policy
        self.passes = passes
        # An adapter that was there before the run is part of the policy as it was at the start.
        self.borrowed = policy.lora and adapter_base(cfg.model.name) is None and not cfg.reference.name
        if self.borrowed:
            return
        name, key = cfg.reference.name or cfg.model.name, "reference.name" if cfg.reference.name else "model.name"
        divided = cfg.learner.zero_stage == 3
        in_shards = divided and adapter_base(name) is None and runtime.param_dtype.itemsize > 2
        sharding = HfDeepSpeedConfig(settings) if in_shards else None
        model = load_frozen(
            name,
            cfg.reference.revision if cfg.reference.name else cfg.model.revision,
            cfg.model.trust_remote_code,
            runtime,
            any_attention=cfg.model.attention == "auto",
            key=key,
        )
        del sharding
        compute_as_learners_do(model, model, runtime)
        model.requires_grad_(False).eval()
        head = LogprobHead(model.get_output_embeddings())
        if divided:
            self.engine, *_ = deepspeed.initialize(model=PolicyModule(model, head), config=deepcopy(settings))
            model.eval()
        self.passes = RankPasses(Policy(model, policy.info, False), cfg.learner, runtime, head)

    def logprobs(self, segments: Sequence[Segment]) -> list[list[float]]:
        """Of this rank's part of the segments, at temperature 1: see `RankLearner.logprobs`."""
        with self.policy.model.disable_adapter() if self.borrowed else nullcontext():
            return self.passes.score_share(segments, 1.0)
