"""What works, and seldom does what is meant: said at the start of a run, not refused."""

from __future__ import annotations

from collections.abc import Iterator

from shoal.config.nodes.algorithm import AlgorithmConfig
from shoal.config.nodes.data import DataConfig
from shoal.config.nodes.parts import WeightSyncConfig
from shoal.config.nodes.reference import ReferenceConfig
from shoal.config.root import ShoalConfig


def cautions(c: ShoalConfig) -> Iterator[str]:
    """One line for each combination to think about."""
    if c.model.train == "lora" and c.model.lora.dropout > 0:
        yield (
            f"model.lora.dropout={c.model.lora.dropout:g}: the training pass drops values at random and the sampler "
            "does not, so their log-probs differ at equal weights. That counts in sampler/* and in the policy ratio "
            "and its clip; set 0 unless the adapter overfits"
        )
    a = c.algorithm
    updates = a.num_epochs * a.num_minibatches
    if c.source.kind == "async" and c.source.max_staleness > 0 and updates > 1:
        yield (
            f"source=async with {updates} optimizer steps a batch (algorithm.num_epochs x num_minibatches): "
            f"source.max_staleness={c.source.max_staleness} counts batches, so a completion may be up to "
            f"{(c.source.max_staleness + 1) * updates - 1} optimizer steps old when its last one is taken"
        )
    if a.kl_coef > 0 and a.kl_in == "reward" and a.advantage == "standard":
        yield (
            "algorithm.kl_in=reward with algorithm.advantage=standard: where the rewards of a group are equal, the KL "
            "alone makes its advantages, and dividing by the standard deviation cancels algorithm.kl_coef; set "
            "algorithm.advantage=centered, or algorithm.kl_in=loss"
        )
    single = c.model.dtype == "float32" or (c.model.dtype == "auto" and c.runtime.target in ("cpu", "mac"))
    if c.weight_sync.delta and single:
        yield (
            "weight_sync.delta=true with float32 weights: nearly all of their elements change at each step, so all are "
            "sent; set model.dtype=bfloat16, or leave it out"
        )
    yield from _of_the_optimizer(c)
    for key, reason in _without_effect(c):
        yield f"{key} has no effect: {reason}"


def _of_the_optimizer(c: ShoalConfig) -> Iterator[str]:
    o, r = c.optimizer, c.run
    if o.lr == 0:
        yield "optimizer.lr=0: no weight will change; set it above 0 to train"
    steps = r.episodes // (r.prompts_per_step * r.group_size) if r.episodes else r.steps
    updates = steps * c.algorithm.num_epochs * c.algorithm.num_minibatches
    if o.warmup_steps > updates:
        yield (
            f"optimizer.warmup_steps={o.warmup_steps}: the run has {updates} optimizer steps, so the learning rate "
            f"never reaches optimizer.lr={o.lr:g}; lower it"
        )


def _without_effect(c: ShoalConfig) -> Iterator[tuple[str, str]]:
    """Keys that were changed from their default and that nothing reads, beside the others."""
    a, default = c.algorithm, AlgorithmConfig()
    if a.advantage != "standard":
        for name in ("std", "eps"):
            if getattr(a, name) != getattr(default, name):
                yield f"algorithm.{name}", f"algorithm.advantage={a.advantage} divides by no standard deviation"
    if a.surrogate == "cispo" and a.clip_low != default.clip_low:
        yield "algorithm.clip_low", "algorithm.surrogate=cispo has no lower clip"
    if a.correction == "none":
        for name in ("correction_low", "correction_high", "correction_average"):
            if getattr(a, name) != getattr(default, name):
                yield f"algorithm.{name}", "algorithm.correction=none"
    if a.zero_variance != "refill" and a.refill_rounds != default.refill_rounds:
        yield "algorithm.refill_rounds", f"algorithm.zero_variance={a.zero_variance} draws no other groups"
    if a.kl_coef == 0:
        for name in ("kl_estimator", "kl_in"):
            if getattr(a, name) != getattr(default, name):
                yield f"algorithm.{name}", "algorithm.kl_coef=0"
        for name in ("name", "revision", "polyak_every", "num_devices", "devices"):
            if getattr(c.reference, name) != getattr(ReferenceConfig(), name):
                yield f"reference.{name}", "algorithm.kl_coef=0 loads no reference"
    if not c.weight_sync.delta and c.weight_sync.full_every != WeightSyncConfig().full_every:
        yield "weight_sync.full_every", "without weight_sync.delta=true every update sends all weights"
    if c.data.task == "story":
        for name in ("split", "eval_split", "path", "eval_path"):
            if getattr(c.data, name, None) != getattr(DataConfig(), name, None):
                yield f"data.{name}", "the built-in task makes its own rows"
