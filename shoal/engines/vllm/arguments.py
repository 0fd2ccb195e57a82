"""What a vLLM is started with, as its own command line says it: the same for a server and for one in this process."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace

import torch

from shoal.config import ShoalConfig
from shoal.errors import ConfigError
from shoal.models.info import ModelInfo
from shoal.runtime import Runtime

SERVED_NAME = "policy"
WORKER_EXTENSION = "shoal.engines.vllm.inside.worker.ShoalWorker"
PROBE_ROOM = 400  # of the self-check's longest probe
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM has room for; an adapter takes the next larger one."""
CPU_BATCH_TOKENS = 8192
CPU_BLOCK = 32  # vLLM's own, 128, is longer than many prompts, and only whole blocks are found again
GIB = 2**30


@dataclass(frozen=True)
class VllmArguments:
    """One vLLM's model and limits. `device` is the type of torch device that this vLLM is built for."""

    model: str
    dtype: str
    max_model_len: int
    max_num_seqs: int
    device: str
    tokenizer: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    tensor_parallel: int = 1
    memory_share: float = 0.9
    cache_gib: float = 0.0
    eager: bool = False
    prefix_cache: bool = True
    sleep: bool = False
    max_lora_rank: int = 0
    devices: tuple[tuple[tuple[str, str], ...], ...] = ()  # of each server: the variable with its GPUs
    lora_targets: tuple[str, ...] = ()  # empty: every layer that vLLM can adapt
    extra: tuple[str, ...] = field(default_factory=tuple)

    def with_model(self, model: str) -> VllmArguments:
        """The same vLLM on other weights, as a weight sync wrote them."""
        return replace(self, model=model, tokenizer=self.tokenizer or self.model, revision=None)

    def line(self) -> list[str]:
        """vLLM's arguments. The user's own come last, so that they win."""
        words = [
            f"--model={self.model}",
            f"--tokenizer={self.tokenizer or self.model}",
            f"--served-model-name={SERVED_NAME}",
            f"--dtype={self.dtype}",
            f"--max-model-len={self.max_model_len}",
            f"--max-num-seqs={self.max_num_seqs}",
            f"--tensor-parallel-size={self.tensor_parallel}",
            "--generation-config=vllm",
            "--logprobs-mode=processed_logprobs",
            f"--worker-extension-cls={WORKER_EXTENSION}",
            "--seed=0",
            "--enable-prefix-caching" if self.prefix_cache else "--no-enable-prefix-caching",
        ]
        words += [f"--revision={self.revision}"] if self.revision else []
        words += ["--trust-remote-code"] if self.trust_remote_code else []
        words += ["--enforce-eager"] if self.eager else []
        words += ["--enable-sleep-mode"] if self.sleep else []
        words += [f"--gpu-memory-utilization={self.memory_share}"] if self.device == "cuda" else []
        words += [f"--kv-cache-memory-bytes={round(self.cache_gib * GIB)}"] if self.cache_gib else []
        if self.device == "cpu":
            words += [
                f"--distributed-executor-backend={'uni' if self.tensor_parallel == 1 else 'mp'}",
                # A prompt that is run in parts winds its request's generator back, which a CPU's generator cannot do.
                "--no-enable-chunked-prefill",
                f"--max-num-batched-tokens={max(self.max_model_len, CPU_BATCH_TOKENS)}",
                f"--block-size={CPU_BLOCK}",
            ]
        if self.max_lora_rank:
            words += ["--enable-lora", f"--max-lora-rank={self.max_lora_rank}", "--max-loras=1"]
            # Left to itself vLLM would adapt the head too, which costs time and cannot give prompt log-probs.
            words += ["--lora-target-modules", *self.lora_targets] if self.lora_targets else []
        return [*words, *self.extra]

    def environment(self) -> dict[str, str]:
        """Variables that vLLM reads at import, beside those of this process."""
        found = {
            "VLLM_NO_USAGE_STATS": "1",
            # The routes for weights, pausing and adapters exist in this mode only.
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
            "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        }
        if self.device == "cpu":
            threads = os.environ.get("OMP_NUM_THREADS") or str(torch.get_num_threads())
            found |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": threads}
            if self.tensor_parallel == 1:
                # Worker and engine core in one process: a process less to switch to and from in every step.
                found["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        return found


def policy_arguments(cfg: ShoalConfig, info: ModelInfo, runtime: Runtime) -> VllmArguments:
    """The vLLM that samples from the policy: it starts from the weights that the policy was loaded from."""
    vllm = cfg.engine.vllm
    adapter = info.adapter if cfg.weight_sync.kind == "lora" else None
    if adapter is not None and adapter.on_head:
        raise ConfigError(
            "weight_sync=lora: vLLM takes no adapter on the head: leave it out of model.lora.target_modules, or set "
            "weight_sync=broadcast"
        )
    device = runtime.device.type if runtime.device.type == "cuda" else "cpu"
    colocated = cfg.engine.kind == "vllm" and device == "cuda"
    return VllmArguments(
        model=info.name,
        tokenizer=info.tokenizer.name_or_path,
        revision=info.revision,
        trust_remote_code=cfg.model.trust_remote_code,
        dtype=str(runtime.param_dtype).removeprefix("torch.") if vllm.dtype == "auto" else vllm.dtype,
        max_model_len=model_length(cfg, info.max_positions),
        max_num_seqs=cfg.engine.max_batch,
        device=device,
        tensor_parallel=vllm.tensor_parallel,
        memory_share=vllm.memory_share
        or (0.45 if colocated and not runtime.plan.engine else runtime.plan.engine_share()),
        devices=tuple(
            tuple(runtime.plan.engine_environment(number).items()) for number in range(len(runtime.plan.engine))
        ),
        cache_gib=vllm.cache_gib or (1.0 if device == "cpu" else 0.0),
        eager=on_device(vllm.eager, device),
        prefix_cache=vllm.prefix_cache,
        sleep=vllm.sleep and colocated and cfg.weight_sync.kind != "shared",  # what sleeps cannot be shared
        max_lora_rank=lora_room(adapter.rank) if adapter else 0,
        lora_targets=adapter.targets if adapter else (),
        extra=tuple(vllm.extra_args),
    )


def on_device(eager: str, device: str) -> bool:
    """What `eager` means on this type of device: compiling for a CPU takes minutes."""
    return device == "cpu" if eager == "auto" else eager == "on"


def model_length(cfg: ShoalConfig, positions: int) -> int:
    """Tokens that a vLLM has room for: the longest prompt and completion, and one more, which scoring samples."""
    if cfg.engine.vllm.max_model_len:
        return cfg.engine.vllm.max_model_len
    return min(max(longest(cfg), PROBE_ROOM) + 1, positions)


def longest(cfg: ShoalConfig) -> int:
    """Most tokens that a prompt and its completion can have, in training or evaluation."""
    new = max(cfg.sampling.max_new_tokens, int(cfg.evaluation.sampling.get("max_new_tokens", 0)))
    return cfg.data.max_prompt_tokens + new


def lora_room(rank: int) -> int:
    """The smallest rank that vLLM offers for an adapter of this rank; the largest where it is above all."""
    return next((room for room in LORA_RANKS if room >= rank), LORA_RANKS[-1])
