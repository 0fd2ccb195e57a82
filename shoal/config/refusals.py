"""The table of combinations that cannot work. Each line says what is wrong and the nearest that works."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from shoal.config.mix import data_sources
from shoal.config.root import ShoalConfig


@dataclass(frozen=True)
class Refusal:
    """`line` is formatted with the configuration as `c`."""

    applies: Callable[[ShoalConfig], bool]
    line: str


def _one_step(c: ShoalConfig) -> int:
    return c.run.prompts_per_step * c.run.group_size


def _without_cuda(c: ShoalConfig) -> bool:
    return c.runtime.target in ("cpu", "mac") or c.runtime.device in ("cpu", "mps")


def _device_of_another_target(c: ShoalConfig) -> bool:
    kind = c.runtime.device.partition(":")[0]
    allowed = {"linux_gpu": ("cuda",), "mac": ("mps", "cpu"), "cpu": ("cpu",)}
    return kind != "auto" and kind not in allowed.get(c.runtime.target, (kind,))


def _most_new_tokens(c: ShoalConfig) -> int:
    return max(c.sampling.max_new_tokens, int(c.evaluation.sampling.get("max_new_tokens", 0)))


def _masks(c: ShoalConfig) -> bool:
    return c.algorithm.correction.endswith("_mask")


def _no_pattern(c: ShoalConfig) -> bool:
    """Whether the format's pattern is empty or no regular expression."""
    pattern = c.reward.format.pattern
    try:
        return pattern is not None and (not pattern.strip() or re.compile(pattern) is None)
    except re.error:
        return True


def _rewards_nothing(c: ShoalConfig) -> bool:
    return c.reward.scale == 0 and c.reward.format.scale == 0 and c.reward.length.coef == 0 and not c.reward.non_stop


SHORTEST = 0.01  # seconds that a call can take

RUN = (
    Refusal(
        lambda c: 0 < c.run.episodes < _one_step(c),
        "run.episodes={c.run.episodes} is less than one step of run.prompts_per_step={c.run.prompts_per_step} x "
        "run.group_size={c.run.group_size} completions: raise it to at least their product, or lower those",
    ),
    Refusal(
        lambda c: c.run.name == "" or c.run.name in (".", ".."),
        "run.name={c.run.name!r} names no folder: give a word, or null for date and time",
    ),
    Refusal(
        lambda c: c.run.made_up_advantages and c.algorithm.zero_variance != "keep",
        "run.made_up_advantages=true trains on groups of equal rewards, which algorithm.zero_variance="
        "{c.algorithm.zero_variance} takes away: set algorithm.zero_variance=keep",
    ),
    Refusal(
        lambda c: c.source.kind == "replay" and not c.source.path,
        "source=replay needs source.path: the folder of a run that had run.record_groups=true",
    ),
    Refusal(
        lambda c: c.source.kind != "replay" and c.source.path is not None,
        "source.path={c.source.path} is read by source=replay only: add source=replay, or leave the path out",
    ),
    Refusal(
        lambda c: c.source.kind == "replay" and c.algorithm.zero_variance == "refill",
        "source=replay cannot roll out more groups for algorithm.zero_variance=refill: set it to drop",
    ),
    Refusal(
        lambda c: c.source.kind == "replay" and c.run.record_groups,
        "run.record_groups=true would record what source=replay reads: leave it out",
    ),
    Refusal(
        lambda c: c.source.kind != "rollout_api" and c.source.launch is not None,
        "source.launch={c.source.launch} starts an environment for source=rollout_api: add that, or leave it out",
    ),
    Refusal(
        lambda c: c.environment.min_allocation > 1,
        "environment.min_allocation={c.environment.min_allocation} is a share of every batch: at most 1",
    ),
    Refusal(
        lambda c: c.environment.tool_timeout < SHORTEST,
        "environment.tool_timeout={c.environment.tool_timeout:g} leaves no time for a tool: set seconds, such as 10",
    ),
    Refusal(
        lambda c: c.memory_profile.enabled and c.memory_profile.interval == 0,
        "memory_profile.interval=0 would sample without a pause: set at least 0.1 seconds",
    ),
)


def _ahead(c: ShoalConfig) -> bool:
    """Whether rollouts run ahead of the learner."""
    return c.source.kind == "async" and c.source.max_staleness > 0


ASYNC = (
    Refusal(
        lambda c: _ahead(c) and c.engine.kind != "vllm_server" and not c.engine.processes,
        "source=async with engine={c.engine.kind}: that engine works in the learner's process, where only one of them "
        "runs at a time: set engine=torch engine.processes=1 weight_sync=broadcast, or engine=vllm_server, or "
        "source.max_staleness=0",
    ),
    Refusal(
        lambda c: _ahead(c) and c.algorithm.correction == "none" and c.algorithm.old_logprobs == "learner",
        "source=async with algorithm.correction=none: completions come from older weights, and without a correction "
        "the loss takes them for the learner's own, which has made runs collapse: set "
        "algorithm.correction=token_truncate",
    ),
    Refusal(
        lambda c: _ahead(c) and c.source.lead > c.source.max_staleness,
        "source.lead={c.source.lead} lets groups be started more steps ahead than source.max_staleness="
        "{c.source.max_staleness} allows: lower it to that, or raise the other",
    ),
    Refusal(
        lambda c: _ahead(c) and c.weight_sync.every > c.source.lead + 1,
        "weight_sync.every={c.weight_sync.every} with source.lead={c.source.lead} would wait for ever: all groups of "
        "lead + 1 steps are trained on before new weights come and let others start; set weight_sync.every to at most "
        "lead + 1, or raise source.lead",
    ),
)

DATA = (
    Refusal(
        lambda c: any(source.task == "story" and source.path is not None for source in data_sources(c.data)),
        "data.task=story makes its own problems and reads no data.path (given: {c.data.path}): set data.task, or the "
        "source's own task, to the layout of the rows, such as gsm8k, or leave the path out",
    ),
    Refusal(
        lambda c: c.model.name == "story" and any(source.task != "story" for source in data_sources(c.data)),
        "model.name=story only reads the words of data.task=story: for other data (data.task={c.data.task}) give a "
        "model, such as model.name=Qwen/Qwen3-0.6B",
    ),
    Refusal(
        lambda c: c.reward.format.pattern is None and (c.reward.format.gate or c.reward.format.scale != 0),
        "reward.format.gate and reward.format.scale do nothing without reward.format.pattern: set it to think_answer",
    ),
    Refusal(
        lambda c: c.reward.length.coef > 0 and c.reward.length.above is None and c.reward.length.below == 0,
        "reward.length.coef={c.reward.length.coef} has no limit to go by: set reward.length.above or .below",
    ),
    Refusal(
        lambda c: c.reward.length.coef == 0 and (c.reward.length.above is not None or c.reward.length.below > 0),
        "reward.length.above and reward.length.below do nothing at reward.length.coef=0: set an amount, such as 0.001",
    ),
    Refusal(
        lambda c: not c.reward.verify and c.reward.format.scale == 0 and c.reward.length.coef == 0,
        "reward.verify=false leaves nothing to reward: set reward.format.scale with a pattern, or reward.length.coef",
    ),
    Refusal(
        lambda c: c.reward.timeout < SHORTEST,
        "reward.timeout={c.reward.timeout:g} leaves no time for a verdict: set seconds, such as 10",
    ),
    Refusal(
        lambda c: (
            "code" in c.reward.verifiers
            and c.reward.code.url is None
            and c.reward.code.total_seconds + 2 > c.reward.timeout
        ),
        "reward.code.total_seconds={c.reward.code.total_seconds} leaves no time within reward.timeout="
        "{c.reward.timeout}, so slow programs would be missing, not wrong: raise reward.timeout to 2 s more",
    ),
    Refusal(
        lambda c: min(c.reward.code.seconds, c.reward.code.cpu_seconds, c.reward.code.total_seconds) < SHORTEST,
        "reward.code.seconds, .cpu_seconds and .total_seconds must leave some time: set seconds, such as 4",
    ),
    Refusal(
        lambda c: c.source.max_unusable > 1,
        "source.max_unusable={c.source.max_unusable} is a share of groups: at most 1 (never stops)",
    ),
    Refusal(
        lambda c: c.reward.max_missing > 1,
        "reward.max_missing={c.reward.max_missing} is a share of a step's rewards: at most 1 (never stops)",
    ),
    Refusal(
        lambda c: bool(c.reward.verifiers) and not any(c.reward.verifiers.values()),
        "reward.verifiers={c.reward.verifiers}: every weight is 0, so every reward would be; give one a weight of 1",
    ),
)

NONSENSE = (
    Refusal(
        _no_pattern,
        "reward.format.pattern={c.reward.format.pattern!r} is no regular expression that a completion could have: set "
        "think_answer, or leave it null",
    ),
    Refusal(
        _rewards_nothing,
        "reward.scale=0 makes every reward 0, so there is nothing to learn from: set 1.0, or reward.format.scale",
    ),
    Refusal(
        lambda c: c.algorithm.surrogate != "cispo" and c.algorithm.clip_low == 0 == c.algorithm.clip_high,
        "algorithm.clip_low=0 and algorithm.clip_high=0 clip every ratio but 1, so that nothing moves: set 0.2 and 0.2",
    ),
    Refusal(
        lambda c: _masks(c) and c.algorithm.correction_low == c.algorithm.correction_high,
        "algorithm.correction={c.algorithm.correction} keeps no ratio but {c.algorithm.correction_low:g} exactly "
        "(correction_low and correction_high are equal): set 0.5 and 2.0",
    ),
)

JUDGES = (
    Refusal(
        lambda c: c.reward.judge.budget > 0 and c.reward.judge.price_in == 0 and c.reward.judge.price_out == 0,
        "reward.judge.budget={c.reward.judge.budget} is in dollars, and no price says what is spent: set "
        "reward.judge.price_in and reward.judge.price_out, dollars for a million tokens",
    ),
    Refusal(
        lambda c: c.reward.rubric.mode == "likert" and (c.reward.rubric.adaptive or c.reward.rubric.normalize),
        "reward.rubric.mode=likert gives one mark, and no scores of criteria for reward.rubric.adaptive or "
        "reward.rubric.normalize to go by: set reward.rubric.mode=criteria",
    ),
    Refusal(
        lambda c: c.reward.rubric.apply_to == "future" and not (c.reward.rubric.adaptive and c.reward.rubric.buffer),
        "reward.rubric.apply_to=future keeps the criteria that reward.rubric.adaptive writes in the buffer: set "
        "reward.rubric.adaptive=true and reward.rubric.buffer=true, or reward.rubric.apply_to=current",
    ),
)

SAMPLING = (
    Refusal(
        lambda c: c.sampling.temperature == 0,
        "sampling.temperature=0 gives every completion of a group the same tokens, so nothing to learn: set 1.0, and "
        "evaluation.sampling.temperature=0 for greedy evaluation",
    ),
    Refusal(
        lambda c: not 0 < c.sampling.top_p <= 1,
        "sampling.top_p={c.sampling.top_p} is a probability above 0 and at most 1 (1 keeps every token)",
    ),
    Refusal(
        lambda c: "" in c.sampling.stop, "sampling.stop={c.sampling.stop}: an empty string ends everything at once"
    ),
    Refusal(
        lambda c: not 0 < c.evaluation.sampling.get("top_p", 1) <= 1,
        "evaluation.sampling.top_p={c.evaluation.sampling[top_p]} is a probability above 0 and at most 1",
    ),
    Refusal(
        lambda c: c.evaluation.samples > 1 and c.evaluation.sampling.get("temperature") == 0,
        "evaluation.samples={c.evaluation.samples} with evaluation.sampling.temperature=0 samples the same completion "
        "every time: set evaluation.samples=1, or a temperature above 0",
    ),
)

ALGORITHM = (
    Refusal(
        lambda c: c.algorithm.kl_coef > 0 and c.algorithm.kl_in == "loss" and c.algorithm.kl_estimator == "k1",
        "algorithm.kl_estimator=k1 in the loss has no expected gradient on policy: set algorithm.kl_estimator=k3, or "
        "algorithm.kl_in=reward",
    ),
    Refusal(
        lambda c: c.algorithm.old_logprobs == "sampler" and c.algorithm.correction != "none",
        "algorithm.old_logprobs=sampler already compares with the sampler, so algorithm.correction="
        "{c.algorithm.correction} would count the mismatch twice: set algorithm.correction=none",
    ),
    Refusal(
        lambda c: c.algorithm.surrogate != "cispo" and c.algorithm.clip_low > 1,
        "algorithm.clip_low={c.algorithm.clip_low} puts the lower clip of the ratio below 0: at most 1 (never clips)",
    ),
    Refusal(
        lambda c: _masks(c) and not c.algorithm.correction_low <= 1 <= c.algorithm.correction_high,
        "algorithm.correction={c.algorithm.correction} keeps ratios from {c.algorithm.correction_low} (correction_low) "
        "to {c.algorithm.correction_high} (correction_high), without 1, a perfect match: set 0.5 and 2.0",
    ),
    Refusal(
        lambda c: c.algorithm.correction.endswith("_truncate") and c.algorithm.correction_high == 0,
        "algorithm.correction_high=0 multiplies every gradient by 0: set the cap to 2.0",
    ),
    Refusal(
        lambda c: c.algorithm.num_minibatches > _one_step(c),
        "algorithm.num_minibatches={c.algorithm.num_minibatches} is more than a step's run.prompts_per_step x "
        "run.group_size completions: lower it to their product or less",
    ),
    Refusal(
        lambda c: c.algorithm.overlong.penalty > 0 and c.algorithm.overlong.buffer == 0,
        "algorithm.overlong.penalty={c.algorithm.overlong.penalty} needs algorithm.overlong.buffer, the tokens over "
        "which it grows: a fifth of sampling.max_new_tokens={c.sampling.max_new_tokens} is usual",
    ),
    Refusal(
        lambda c: c.algorithm.overlong.buffer > c.sampling.max_new_tokens,
        "algorithm.overlong.buffer={c.algorithm.overlong.buffer} is more than "
        "sampling.max_new_tokens={c.sampling.max_new_tokens}: set it to that or less",
    ),
    Refusal(
        lambda c: c.reference.polyak_alpha > 1,
        "reference.polyak_alpha={c.reference.polyak_alpha} is a share of the policy's weights: at most 1",
    ),
)

OPTIMIZER = (
    Refusal(
        lambda c: len(c.optimizer.betas) != 2 or not all(0 <= beta < 1 for beta in c.optimizer.betas),
        "optimizer.betas={c.optimizer.betas}: two numbers from 0 to below 1, such as [0.9,0.95]",
    ),
    Refusal(
        lambda c: c.optimizer.warmup_steps > 0 and c.optimizer.warmup_ratio > 0,
        "optimizer.warmup_steps={c.optimizer.warmup_steps} and optimizer.warmup_ratio={c.optimizer.warmup_ratio} both "
        "say how long the warm-up is: set one of them to 0",
    ),
    Refusal(
        lambda c: c.optimizer.warmup_ratio > 1,
        "optimizer.warmup_ratio={c.optimizer.warmup_ratio} is a share of the run: at most 1; for steps there is "
        "optimizer.warmup_steps",
    ),
    Refusal(
        lambda c: c.optimizer.scheduler == "constant" and bool(c.optimizer.scheduler_kwargs),
        "optimizer.scheduler=constant takes no optimizer.scheduler_kwargs: leave them out, or choose another schedule",
    ),
    Refusal(
        lambda c: c.model.lora.dropout >= 1,
        "model.lora.dropout={c.model.lora.dropout} is a probability below 1",
    ),
)

MACHINE = (
    Refusal(
        lambda c: re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", c.runtime.device) is None,
        "runtime.device={c.runtime.device} is no device: write auto, cpu, mps, cuda or cuda:1",
    ),
    Refusal(
        _device_of_another_target,
        "runtime.target={c.runtime.target} has no runtime.device={c.runtime.device}: leave one of them on auto",
    ),
    Refusal(
        lambda c: c.runtime.mixed_precision in ("bf16", "fp16") and c.model.dtype in ("bfloat16", "float16"),
        "runtime.mixed_precision={c.runtime.mixed_precision} computes over float32 parameters, but "
        "model.dtype={c.model.dtype}: set model.dtype=float32, or runtime.mixed_precision=auto",
    ),
    Refusal(
        lambda c: _without_cuda(c) and c.optimizer.name == "adamw_8bit",
        "optimizer.name=adamw_8bit needs CUDA: set optimizer.name=adamw",
    ),
    Refusal(
        lambda c: _without_cuda(c) and c.model.attention == "flash_attention_2",
        "model.attention=flash_attention_2 needs CUDA: set model.attention=sdpa",
    ),
    Refusal(
        lambda c: (
            c.model.attention == "flash_attention_2"
            and c.model.dtype == "float32"
            and c.runtime.mixed_precision == "none"
        ),
        "model.attention=flash_attention_2 computes in 16 bits only: set runtime.mixed_precision=bf16, or "
        "model.attention=sdpa",
    ),
    Refusal(
        lambda c: c.learner.pack_length > 0 and c.model.attention == "flash_attention_2",
        "learner.pack_length={c.learner.pack_length} has no effect with model.attention=flash_attention_2, whose rows "
        "take learner.micro_batch_tokens={c.learner.micro_batch_tokens} each: set that one instead",
    ),
    Refusal(
        lambda c: c.learner.pack_length > c.learner.micro_batch_tokens,
        "learner.pack_length={c.learner.pack_length} is more than "
        "learner.micro_batch_tokens={c.learner.micro_batch_tokens}: set it to that or less",
    ),
    Refusal(
        lambda c: c.learner.pack_length > 0 and c.learner.packing == "off",
        "learner.pack_length={c.learner.pack_length} has no effect with learner.packing=off: set packing to on or auto",
    ),
    Refusal(
        lambda c: 0 < c.engine.max_cache_tokens < c.data.max_prompt_tokens + _most_new_tokens(c),
        "engine.max_cache_tokens={c.engine.max_cache_tokens} does not hold one completion: set at least "
        "data.max_prompt_tokens={c.data.max_prompt_tokens} + sampling.max_new_tokens={c.sampling.max_new_tokens} (or "
        "what evaluation.sampling asks for)",
    ),
)

PROCESSES = (
    Refusal(
        lambda c: c.engine.processes > 0 and c.engine.kind != "torch",
        "engine.processes={c.engine.processes} are those of engine=torch: with engine={c.engine.kind} set it to 0 "
        "(engine.vllm.servers counts the servers of engine=vllm_server)",
    ),
    Refusal(
        lambda c: c.engine.processes > 0 and c.weight_sync.kind == "in_place",
        "engine.processes={c.engine.processes} have weights of their own, but weight_sync=in_place shares the "
        "learner's module: set weight_sync=broadcast, or engine.processes=0",
    ),
    Refusal(
        lambda c: c.engine.processes == 0 and c.engine.kind == "torch" and c.weight_sync.kind != "in_place",
        "engine=torch weight_sync={c.weight_sync.kind} do not go together in the learner's process; the nearest "
        "combination that works has weight_sync=in_place, or engine.processes=1 beside weight_sync=broadcast",
    ),
)

DEEPSPEED = (
    Refusal(
        lambda c: c.learner.kind == "deepspeed" and bool(c.learner.devices),
        "learner.devices={c.learner.devices}: Ray places the ranks of learner=deepspeed: give learner.num_devices",
    ),
    Refusal(
        lambda c: c.learner.kind == "deepspeed" and c.learner.offload_parameters and c.learner.zero_stage != 3,
        "learner.offload_parameters needs weights that are divided: set learner.zero_stage=3",
    ),
    Refusal(
        lambda c: c.learner.kind == "deepspeed" and c.learner.offload_optimizer and c.learner.zero_stage == 0,
        "learner.offload_optimizer needs optimizer states that are divided: set learner.zero_stage=1 or more",
    ),
    Refusal(
        lambda c: (
            c.learner.kind == "deepspeed" and c.learner.zero_stage == 0 and c.model.dtype in ("bfloat16", "float16")
        ),
        "learner.zero_stage=0 holds weights in float32 only: set learner.zero_stage=1, or model.dtype=float32",
    ),
    Refusal(
        lambda c: c.learner.kind == "deepspeed" and c.runtime.mixed_precision == "fp16",
        "runtime.mixed_precision=fp16 needs loss scaling, which DeepSpeed has for weights in float16: set "
        "model.dtype=float16, or runtime.mixed_precision=bf16",
    ),
    Refusal(
        lambda c: c.learner.kind == "deepspeed" and c.optimizer.name == "adamw_8bit",
        "optimizer.name=adamw_8bit is not for learner=deepspeed, which divides the states instead: set "
        "optimizer.name=adamw",
    ),
    Refusal(
        lambda c: c.learner.kind == "deepspeed" and c.reference.polyak_every > 0,
        "reference.polyak_every={c.reference.polyak_every} reads the learner's weights in this process, where "
        "learner=deepspeed has none: set it to 0",
    ),
)

WEIGHT_SYNC = (
    Refusal(
        lambda c: c.weight_sync.kind == "lora" and c.model.train != "lora",
        "weight_sync=lora hands over adapters, but model.train={c.model.train} trains all weights: set "
        "model.train=lora, or weight_sync=broadcast",
    ),
    Refusal(
        lambda c: c.weight_sync.kind == "shared" and c.model.train == "lora" and c.engine.kind != "torch",
        "weight_sync=shared shares the base's memory, in which adapters are not merged: set weight_sync=lora, or "
        "model.train=full",
    ),
    Refusal(
        lambda c: c.weight_sync.kind == "shared" and c.engine.vllm.tensor_parallel > 1,
        "weight_sync=shared needs an engine that holds each weight whole, but engine.vllm.tensor_parallel="
        "{c.engine.vllm.tensor_parallel}: set it to 1, or weight_sync=broadcast",
    ),
    Refusal(
        lambda c: c.weight_sync.kind == "shared" and max(c.engine.vllm.servers, len(c.engine.vllm.endpoints)) > 1,
        "weight_sync=shared is for one server, whose memory the learner's is: set weight_sync=broadcast for several",
    ),
    Refusal(
        lambda c: (
            c.weight_sync.every > 1
            and (c.weight_sync.kind == "in_place" or (c.weight_sync.kind == "shared" and c.engine.kind != "torch"))
        ),
        "weight_sync.every={c.weight_sync.every}: with weight_sync={c.weight_sync.kind} the engine has the learner's "
        "weights at once: set it to 1, or weight_sync=broadcast with engine=vllm_server",
    ),
    Refusal(
        lambda c: c.weight_sync.in_flight == "keep" and c.weight_sync.kind == "restart",
        "weight_sync.in_flight=keep: no request outlives weight_sync=restart: set drain or abort, or "
        "weight_sync=broadcast",
    ),
    Refusal(
        lambda c: c.weight_sync.in_flight != "drain" and c.weight_sync.kind == "in_place",
        "weight_sync.in_flight={c.weight_sync.in_flight} is for vLLM; with weight_sync=in_place requests in flight go "
        "on with the new weights: leave it out",
    ),
    Refusal(
        lambda c: c.weight_sync.kind == "restart" and bool(c.engine.vllm.endpoints),
        "weight_sync=restart cannot restart the servers of engine.vllm.endpoints, which someone else runs: set "
        "weight_sync=broadcast (servers started by shoal serve vllm), or leave the endpoints out",
    ),
    Refusal(
        lambda c: c.weight_sync.delta and c.weight_sync.kind != "broadcast",
        "weight_sync.delta=true sends less through a process group, and weight_sync={c.weight_sync.kind} sends nothing "
        "through one: set weight_sync=broadcast, or leave it out",
    ),
    Refusal(
        lambda c: c.weight_sync.bridge is not None and c.weight_sync.kind != "shared",
        "weight_sync.bridge={c.weight_sync.bridge} is read by weight_sync=shared only: add that, or leave it out",
    ),
)

VLLM = (
    Refusal(
        lambda c: 0 < c.engine.vllm.max_model_len < c.data.max_prompt_tokens + _most_new_tokens(c),
        "engine.vllm.max_model_len={c.engine.vllm.max_model_len} does not hold one completion: set at least "
        "data.max_prompt_tokens={c.data.max_prompt_tokens} + sampling.max_new_tokens={c.sampling.max_new_tokens} (or "
        "what evaluation.sampling asks for), or 0",
    ),
    Refusal(
        lambda c: c.engine.vllm.memory_share > 1 or c.reference.memory_share > 1,
        "engine.vllm.memory_share={c.engine.vllm.memory_share} and reference.memory_share={c.reference.memory_share} "
        "are shares of a GPU's memory: at most 1",
    ),
    Refusal(
        lambda c: bool(c.engine.vllm.endpoints) and c.engine.kind != "vllm_server",
        "engine.vllm.endpoints are asked by engine=vllm_server only (given: engine={c.engine.kind}): add that, or "
        "leave the endpoints out",
    ),
    Refusal(
        lambda c: c.engine.vllm.servers > 1 and bool(c.engine.vllm.endpoints),
        "engine.vllm.servers={c.engine.vllm.servers} are launched only where no engine.vllm.endpoints are given: leave "
        "one of them out",
    ),
    Refusal(
        lambda c: c.engine.vllm.servers > 1 and c.engine.kind == "vllm",
        "engine.vllm.servers={c.engine.vllm.servers}: engine=vllm is the one in this process: set engine=vllm_server, "
        "or engine.vllm.servers=1",
    ),
    Refusal(
        lambda c: c.engine.max_cache_tokens > 0 and c.engine.kind != "torch",
        "engine.max_cache_tokens={c.engine.max_cache_tokens} bounds engine=torch: with engine={c.engine.kind} set "
        "engine.vllm.cache_gib or engine.vllm.memory_share instead, and this to 0",
    ),
    Refusal(
        lambda c: c.reference.kind != "model" and c.reference.polyak_every > 0,
        "reference.polyak_every={c.reference.polyak_every} moves weights in the learner's process, which "
        "reference.kind={c.reference.kind} does not hold: set reference.kind=model, or reference.polyak_every=0",
    ),
    Refusal(
        lambda c: c.reference.kind == "vllm_endpoint" and c.reference.port == 0,
        "reference.kind=vllm_endpoint needs reference.port, where the server listens (and reference.host)",
    ),
    Refusal(
        lambda c: (
            c.reference.kind == "vllm_launch"
            and 0 < c.reference.max_model_len <= c.data.max_prompt_tokens + _most_new_tokens(c)
        ),
        "reference.max_model_len={c.reference.max_model_len} does not hold one completion and the token that scoring "
        "samples: set more than data.max_prompt_tokens={c.data.max_prompt_tokens} + sampling.max_new_tokens="
        "{c.sampling.max_new_tokens}, or 0",
    ),
)

REFUSALS = (
    RUN
    + ASYNC
    + DATA
    + NONSENSE
    + JUDGES
    + SAMPLING
    + ALGORITHM
    + OPTIMIZER
    + MACHINE
    + DEEPSPEED
    + PROCESSES
    + VLLM
    + WEIGHT_SYNC
)
