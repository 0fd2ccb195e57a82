"""What a run will take of the device's memory, before it takes it."""

from __future__ import annotations

from typing import Any

from shoal.algorithms.logprobs import WORKING_COPY
from shoal.config import ShoalConfig
from shoal.config.cluster_keys import rank_count
from shoal.engines.builtin.fused_weights import ARCHITECTURES, fuses
from shoal.models.info import ModelInfo
from shoal.runtime import Runtime

# Vectors of the hidden size that one layer keeps per token for its backward pass: two norms' inputs and outputs,
# the attention's and the MLP's result, their residual sums.
HIDDEN_VECTORS = 8
# Queries, keys and values each before and after their norm and rotation, and the attention's result.
ATTENTION_VECTORS = 3
# Gate, up, activation and product.
FFN_VECTORS = 4
# What Python, torch and transformers take of a process on a CPU before anything is loaded, and its kernels at work.
PROCESS = 450 * 2**20
# The ZeRO stage from which on ranks divide a part.
DIVIDED_FROM = {"optimizer": 1, "master": 1, "gradients": 2, "weights": 3}
# Parts that exist only while a batch is trained, when the KV cache is gone.
TRAINING = ("gradients", "activations", "logits")


def peak(plan: dict[str, int]) -> int:
    """The most bytes at a time: of what `estimate` lists, the KV cache and what training needs take turns."""
    turns = max(plan.get("kv_cache", 0), sum(plan.get(part, 0) for part in TRAINING))
    return turns + sum(size for part, size in plan.items() if part not in ("kv_cache", *TRAINING))


def estimate(cfg: ShoalConfig, runtime: Runtime, info: ModelInfo, longest_prompt: int | None = None) -> dict[str, int]:
    """Bytes by part: weights, gradients, optimizer, master, reference, engine, kv_cache, activations, logits, process.

    What vLLM takes, as the engine or the reference, is its own to plan and not in here.
    Weights are counted exactly, from the architecture; activations by the tensors that a common decoder layer keeps,
    for one full micro-batch; the KV cache for completions that all reach the limit, after prompts of `longest_prompt`
    tokens (None: of data.max_prompt_tokens). Parts that a run does not have are 0.
    """
    text = info.architecture.get_text_config()
    item = runtime.param_dtype.itemsize
    positions = getattr(text, "max_position_embeddings", None)
    total, linear = info.count_parameters()
    trained = info.adapter_parameters() if cfg.model.train == "lora" else total
    on_cpu = runtime.device.type == "cpu" and runtime.compute_dtype is not None
    borrowed = cfg.model.train == "lora" and not cfg.reference.name and not cfg.reference.polyak_every
    elsewhere = borrowed or cfg.reference.kind != "model"
    chunk = min(cfg.learner.logprob_chunk, cfg.learner.micro_batch_tokens)
    return {
        "weights": total * item + (linear * 2 if on_cpu else 0),
        "gradients": trained * 4,
        "optimizer": trained * (2 if cfg.optimizer.name == "adamw_8bit" else 8),
        "master": trained * 4 if runtime.master_weights else 0,
        "reference": total * item if cfg.algorithm.kl_coef and not elsewhere else 0,
        "engine": engine_bytes(cfg, runtime, text, total, linear),
        "kv_cache": cache_tokens(cfg, positions, longest_prompt) * cache_bytes_per_token(text, item)
        if cfg.engine.kind == "torch"
        else 0,
        "activations": activation_bytes(cfg, runtime, text),
        "logits": (chunk * text.vocab_size + WORKING_COPY) * 4,
        "process": PROCESS if runtime.device.type == "cpu" else 0,
    }


def of_one_rank(cfg: ShoalConfig, parts: dict[str, int]) -> dict[str, int]:
    """What of `parts` one rank of learner=deepspeed holds: its share of what `learner.zero_stage` divides."""
    if cfg.learner.kind != "deepspeed":
        return parts
    world, stage = rank_count(cfg), cfg.learner.zero_stage
    return {part: -(-size // world) if stage >= DIVIDED_FROM.get(part, 4) else size for part, size in parts.items()}


def engine_bytes(cfg: ShoalConfig, runtime: Runtime, text: Any, total: int, linear: int) -> int:
    """The built-in engine's own copies of linear layers: merged with adapters, cast to 16 bits, or put side by side
    in models that are not large. See `fused_weights.collect`."""
    known = {name.removesuffix("ForCausalLM").lower() for name in ARCHITECTURES}
    if cfg.engine.kind != "torch" or text.model_type not in known:
        return 0
    item = (runtime.compute_dtype or runtime.param_dtype).itemsize
    if cfg.model.train == "lora" or runtime.compute_dtype not in (None, runtime.param_dtype):
        return linear * item
    heads = text.num_attention_heads + 2 * (getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
    joined = text.num_hidden_layers * text.hidden_size * (heads * head_width(text) + 2 * text.intermediate_size)
    return joined * item if fuses(runtime.device.type, total, copied=False) else 0


def cache_tokens(cfg: ShoalConfig, positions: int | None = None, longest_prompt: int | None = None) -> int:
    """Most tokens in the KV cache at a time, of a model that can hold `positions` (None: any number)."""
    prompt = cfg.data.max_prompt_tokens if longest_prompt is None else longest_prompt
    each = prompt + cfg.sampling.max_new_tokens
    each = min(each, positions or each)
    most = min(cfg.engine.max_batch, cfg.run.prompts_per_step * cfg.run.group_size) * each
    return min(most, cfg.engine.max_cache_tokens or most)


def cache_bytes_per_token(text: Any, item: int) -> int:
    """Keys and values of all layers."""
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * head_width(text) * item


def head_width(text: Any) -> int:
    """Numbers in one attention head."""
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def activation_bytes(cfg: ShoalConfig, runtime: Runtime, text: Any) -> int:
    """What one micro-batch keeps for its backward pass."""
    tokens = cfg.learner.micro_batch_tokens
    heads = text.num_attention_heads + 2 * (getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
    ffn = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    layer = HIDDEN_VECTORS * text.hidden_size + ATTENTION_VECTORS * heads * head_width(text) + FFN_VECTORS * ffn
    item = 4 if runtime.device.type == "cpu" else (runtime.compute_dtype or runtime.param_dtype).itemsize
    if cfg.model.gradient_checkpointing:
        return tokens * item * (text.num_hidden_layers * text.hidden_size + layer)
    return tokens * item * text.num_hidden_layers * layer
