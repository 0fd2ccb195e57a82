"""Combinations that cannot work are refused, and the nearest one that the line names is accepted."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from shoal.config import ShoalConfig, load_config
from shoal.config.keys import set_value
from shoal.config.refusals import REFUSALS
from shoal.config.validate import check_kinds, validate
from shoal.errors import ConfigError

Values = dict[str, Any]

SERVER: Values = {"engine.kind": "vllm_server", "weight_sync.kind": "broadcast"}

AHEAD: Values = {**SERVER, "source.kind": "async", "algorithm.correction": "token_truncate"}

RANKS: Values = {"learner.kind": "deepspeed", "engine.kind": "vllm_server", "weight_sync.kind": "broadcast"}

# What is set on top of the default, and what mends it.
EXAMPLES: list[tuple[Values, Values]] = [
    ({**RANKS, "learner.devices": [0]}, {"learner.devices": []}),
    ({**RANKS, "learner.offload_parameters": True}, {"learner.zero_stage": 3}),
    ({**RANKS, "learner.zero_stage": 0, "learner.offload_optimizer": True}, {"learner.zero_stage": 1}),
    ({**RANKS, "learner.zero_stage": 0, "model.dtype": "bfloat16"}, {"model.dtype": "float32"}),
    ({**RANKS, "runtime.mixed_precision": "fp16"}, {"runtime.mixed_precision": "bf16"}),
    ({**RANKS, "runtime.target": "linux_gpu", "optimizer.name": "adamw_8bit"}, {"optimizer.name": "adamw"}),
    ({**RANKS, "reference.polyak_every": 1}, {"reference.polyak_every": 0}),
    (
        {"engine.processes": 2, "engine.kind": "vllm_server", "weight_sync.kind": "broadcast"},
        {"engine.processes": 0},
    ),
    ({"engine.processes": 2}, {"weight_sync.kind": "broadcast"}),
    ({"engine.kind": "torch", "weight_sync.kind": "broadcast"}, {"engine.processes": 1}),
    ({"run.episodes": 255}, {"run.episodes": 256}),
    ({"run.name": ""}, {"run.name": None}),
    ({"run.made_up_advantages": True, "algorithm.zero_variance": "drop"}, {"algorithm.zero_variance": "keep"}),
    ({"source.kind": "replay"}, {"source.path": "old"}),
    ({"source.path": "old"}, {"source.kind": "replay"}),
    (
        {"source.kind": "replay", "source.path": "old", "algorithm.zero_variance": "refill"},
        {"algorithm.zero_variance": "drop"},
    ),
    ({"source.kind": "replay", "source.path": "old", "run.record_groups": True}, {"run.record_groups": False}),
    ({"source.max_unusable": 1.5}, {"source.max_unusable": 1.0}),
    ({"source.launch": "story"}, {"source.kind": "rollout_api"}),
    ({"environment.min_allocation": 1.5}, {"environment.min_allocation": 1.0}),
    ({"environment.tool_timeout": 0.0}, {"environment.tool_timeout": 10.0}),
    ({"memory_profile.enabled": True, "memory_profile.interval": 0.0}, {"memory_profile.interval": 0.1}),
    ({"source.kind": "async", "algorithm.correction": "token_truncate"}, SERVER),
    ({"source.kind": "async"}, {"source.max_staleness": 0}),
    ({**AHEAD, "algorithm.correction": "none"}, {"algorithm.correction": "token_truncate"}),
    ({**AHEAD, "algorithm.correction": "none"}, {"algorithm.old_logprobs": "sampler"}),
    ({**AHEAD, "source.lead": 5}, {"source.max_staleness": 5}),
    ({**AHEAD, "weight_sync.every": 3}, {"source.lead": 2}),
    ({"data.path": "file.jsonl"}, {"data.task": "gsm8k", "model.name": "m"}),
    ({"data.task": "gsm8k", "data.path": "openai/gsm8k"}, {"model.name": "Qwen/Qwen3-0.6B"}),
    ({"reward.format.gate": True}, {"reward.format.pattern": "think_answer"}),
    ({"reward.format.scale": 0.5}, {"reward.format.pattern": "think_answer"}),
    ({"reward.length.coef": 0.1}, {"reward.length.above": 20}),
    ({"reward.format.pattern": ""}, {"reward.format.pattern": "think_answer"}),
    (
        {"reward.format.pattern": "(", "reward.format.scale": 1.0},
        {"reward.format.pattern": None, "reward.format.scale": 0.0},
    ),
    ({"reward.scale": 0.0}, {"reward.scale": 1.0}),
    ({"algorithm.clip_low": 0.0, "algorithm.clip_high": 0.0}, {"algorithm.clip_low": 0.2, "algorithm.clip_high": 0.2}),
    (
        {"algorithm.correction": "token_mask", "algorithm.correction_low": 1.0, "algorithm.correction_high": 1.0},
        {"algorithm.correction_low": 0.5, "algorithm.correction_high": 2.0},
    ),
    ({"reward.length.below": 5}, {"reward.length.coef": 0.1}),
    ({"reward.verify": False}, {"reward.format.pattern": "think_answer", "reward.format.scale": 1.0}),
    ({"reward.timeout": 0.0}, {"reward.timeout": 10.0}),
    ({"reward.max_missing": 1.5}, {"reward.max_missing": 1.0}),
    (
        {"reward.verifiers": {"code": 1.0}, "reward.code.total_seconds": 9.0},
        {"reward.verifiers": {"code": 1.0}, "reward.code.total_seconds": 8.0},
    ),
    ({"reward.code.seconds": 0.0}, {"reward.code.seconds": 4.0}),
    ({"reward.verifiers": {"a": 0.0}}, {"reward.verifiers": {"a": 1.0}}),
    ({"reward.judge.budget": 5.0}, {"reward.judge.price_in": 0.4}),
    ({"reward.rubric.mode": "likert", "reward.rubric.normalize": True}, {"reward.rubric.mode": "criteria"}),
    ({"reward.rubric.apply_to": "future"}, {"reward.rubric.adaptive": True}),
    ({"sampling.temperature": 0.0}, {"sampling.temperature": 1.0, "evaluation.sampling": {"temperature": 0}}),
    ({"sampling.top_p": 0.0}, {"sampling.top_p": 1.0}),
    ({"sampling.top_p": 1.5}, {"sampling.top_p": 0.9}),
    ({"sampling.stop": ["###", ""]}, {"sampling.stop": ["###"]}),
    ({"evaluation.sampling": {"top_p": 0.0}}, {"evaluation.sampling": {"top_p": 0.5}}),
    ({"evaluation.samples": 4, "evaluation.sampling": {"temperature": 0}}, {"evaluation.samples": 1}),
    ({"algorithm.kl_coef": 0.1, "algorithm.kl_estimator": "k1"}, {"algorithm.kl_estimator": "k3"}),
    ({"algorithm.kl_coef": 0.1, "algorithm.kl_estimator": "k1"}, {"algorithm.kl_in": "reward"}),
    (
        {"algorithm.old_logprobs": "sampler", "algorithm.correction": "token_truncate"},
        {"algorithm.correction": "none"},
    ),
    ({"algorithm.clip_low": 1.5}, {"algorithm.clip_low": 1.0}),
    ({"algorithm.correction": "token_mask", "algorithm.correction_low": 1.1}, {"algorithm.correction_low": 0.5}),
    ({"algorithm.correction": "sequence_mask", "algorithm.correction_high": 0.9}, {"algorithm.correction_high": 2.0}),
    ({"algorithm.correction": "token_truncate", "algorithm.correction_high": 0.0}, {"algorithm.correction_high": 2.0}),
    ({"algorithm.num_minibatches": 257}, {"algorithm.num_minibatches": 256}),
    ({"algorithm.overlong.penalty": 1.0}, {"algorithm.overlong.buffer": 8}),
    ({"algorithm.overlong.buffer": 41}, {"algorithm.overlong.buffer": 40}),
    ({"reference.polyak_alpha": 1.1}, {"reference.polyak_alpha": 1.0}),
    ({"optimizer.betas": [0.9]}, {"optimizer.betas": [0.9, 0.95]}),
    ({"optimizer.betas": [0.9, 1.0]}, {"optimizer.betas": [0.9, 0.999]}),
    ({"optimizer.warmup_steps": 5, "optimizer.warmup_ratio": 0.1}, {"optimizer.warmup_steps": 0}),
    ({"optimizer.warmup_steps": 0, "optimizer.warmup_ratio": 5.0}, {"optimizer.warmup_ratio": 0.05}),
    ({"optimizer.scheduler_kwargs": {"power": 2}}, {"optimizer.scheduler": "polynomial"}),
    ({"model.lora.dropout": 1.0}, {"model.lora.dropout": 0.1}),
    ({"runtime.device": "gpu"}, {"runtime.device": "cuda"}),
    ({"runtime.target": "linux_gpu", "runtime.device": "cpu"}, {"runtime.target": "auto"}),
    ({"runtime.target": "mac", "runtime.device": "cuda:1"}, {"runtime.device": "mps"}),
    ({"runtime.target": "cpu", "optimizer.name": "adamw_8bit"}, {"optimizer.name": "adamw"}),
    ({"runtime.device": "mps", "model.attention": "flash_attention_2"}, {"model.attention": "sdpa"}),
    (
        {"model.attention": "flash_attention_2", "model.dtype": "float32", "runtime.mixed_precision": "none"},
        {"runtime.mixed_precision": "bf16"},
    ),
    ({"model.dtype": "bfloat16", "runtime.mixed_precision": "fp16"}, {"model.dtype": "float32"}),
    ({"model.attention": "flash_attention_2", "learner.pack_length": 512}, {"learner.pack_length": 0}),
    ({"learner.pack_length": 9000}, {"learner.pack_length": 8192}),
    ({"learner.pack_length": 512, "learner.packing": "off"}, {"learner.packing": "auto"}),
    ({"engine.max_cache_tokens": 103}, {"engine.max_cache_tokens": 104}),  # 64 of the prompt + 40 new ones
    ({"engine.max_cache_tokens": 104, "evaluation.sampling": {"max_new_tokens": 60}}, {"engine.max_cache_tokens": 124}),
    ({**SERVER, "weight_sync.kind": "lora"}, {"model.train": "lora"}),
    ({**SERVER, "weight_sync.kind": "shared", "model.train": "lora"}, {"weight_sync.kind": "lora"}),
    ({**SERVER, "weight_sync.kind": "shared", "engine.vllm.tensor_parallel": 2}, {"weight_sync.kind": "broadcast"}),
    ({**SERVER, "weight_sync.kind": "shared", "engine.vllm.servers": 2}, {"weight_sync.kind": "broadcast"}),
    ({"weight_sync.every": 2}, {**SERVER, "weight_sync.kind": "broadcast"}),
    ({**SERVER, "weight_sync.kind": "restart", "weight_sync.in_flight": "keep"}, {"weight_sync.in_flight": "abort"}),
    ({"weight_sync.in_flight": "abort"}, {"weight_sync.in_flight": "drain"}),
    (
        {**SERVER, "weight_sync.kind": "restart", "engine.vllm.endpoints": ["http://127.0.0.1:1"]},
        {"weight_sync.kind": "broadcast"},
    ),
    (
        {"engine.processes": 1, "weight_sync.kind": "shared", "weight_sync.delta": True},
        {"weight_sync.kind": "broadcast"},
    ),
    (
        {**SERVER, "weight_sync.kind": "broadcast", "weight_sync.bridge": "somewhere"},
        {"weight_sync.kind": "shared"},
    ),
    ({"engine.vllm.max_model_len": 103}, {"engine.vllm.max_model_len": 104}),
    ({"engine.vllm.memory_share": 1.5}, {"engine.vllm.memory_share": 0.5}),
    ({"engine.vllm.endpoints": ["http://h:1"]}, {"engine.kind": "vllm_server", "weight_sync.kind": "broadcast"}),
    ({**SERVER, "engine.vllm.endpoints": ["http://h:1"], "engine.vllm.servers": 2}, {"engine.vllm.servers": 1}),
    ({**SERVER, "engine.kind": "vllm", "engine.vllm.servers": 2}, {"engine.kind": "vllm_server"}),
    ({**SERVER, "engine.max_cache_tokens": 200}, {"engine.max_cache_tokens": 0, "engine.vllm.cache_gib": 1.0}),
    ({"reference.kind": "vllm_launch", "reference.polyak_every": 2}, {"reference.polyak_every": 0}),
    ({"reference.kind": "vllm_launch", "reference.polyak_every": 2}, {"reference.kind": "model"}),
    ({"reference.kind": "vllm_endpoint"}, {"reference.port": 8000}),
    ({"reference.kind": "vllm_launch", "reference.max_model_len": 104}, {"reference.max_model_len": 105}),
]


DEFAULT = load_config()


def changed(*changes: Values) -> ShoalConfig:
    config = deepcopy(DEFAULT)
    for change in changes:
        for name, value in change.items():
            set_value(config, name, value)
    return config


@pytest.mark.parametrize(("bad", "mended"), EXAMPLES, ids=[" ".join(bad) for bad, _ in EXAMPLES])
def test_a_combination_that_cannot_work_is_refused_and_its_remedy_accepted(bad: Values, mended: Values):
    with pytest.raises(ConfigError) as caught:
        validate(changed(bad))
    line = str(caught.value)
    assert "\n" not in line and "{" not in line.replace(str(bad.get("reward.verifiers")), "")
    assert any(name in line or name.removesuffix(".kind") in line for name in bad)
    validate(changed(bad, mended))


def test_every_line_of_the_table_has_an_example():
    met = {next(r.line for r in REFUSALS if r.applies(changed(bad))) for bad, _ in EXAMPLES}
    assert [refusal.line for refusal in REFUSALS if refusal.line not in met] == []


def test_the_default_stays_clear_of_all_lines():
    assert [refusal.line for refusal in REFUSALS if refusal.applies(DEFAULT)] == []


# A table as later kinds will write it: the nearest row is the one that changes least.
WORKING = (
    {"source": ("sync", "replay"), "engine": ("torch",), "learner": ("local",), "weight_sync": ("in_place",)},
    {"source": ("sync", "async"), "engine": ("vllm",), "learner": ("local", "sharded"), "weight_sync": ("broadcast",)},
)


def test_kinds_that_go_together_are_accepted():
    check_kinds({"source": "async", "engine": "vllm", "learner": "sharded", "weight_sync": "broadcast"}, WORKING)


def test_kinds_that_do_not_go_together_name_the_smallest_change():
    with pytest.raises(ConfigError) as caught:
        check_kinds({"source": "sync", "engine": "vllm", "learner": "local", "weight_sync": "in_place"}, WORKING)
    assert str(caught.value) == (
        "source=sync engine=vllm learner=local weight_sync=in_place do not go together; "
        "the nearest combination that works has weight_sync=broadcast"
    )
    with pytest.raises(ConfigError, match=r"works has weight_sync=broadcast$"):
        check_kinds({"source": "async", "engine": "vllm", "learner": "local", "weight_sync": "in_place"}, WORKING)
