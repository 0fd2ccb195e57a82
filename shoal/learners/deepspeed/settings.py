"""DeepSpeed's own configuration, made from Shoal's; no import of DeepSpeed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from shoal.config import ShoalConfig
from shoal.errors import ConfigError
from shoal.runtime import Runtime

OURS = {
    "optimizer": "optimizer.*",
    "scheduler": "optimizer.scheduler",
    "gradient_clipping": "optimizer.max_grad_norm",
    "gradient_accumulation_steps": "learner.micro_batch_tokens",
    "managed_gradient_accumulation": "learner.micro_batch_tokens",
    "train_batch_size": "run.prompts_per_step and run.group_size",
    "train_micro_batch_size_per_gpu": "learner.micro_batch_tokens",
    "zero_optimization.stage": "learner.zero_stage",
    "zero_optimization.offload_optimizer.device": "learner.offload_optimizer",
    "zero_optimization.offload_param.device": "learner.offload_parameters",
    "bf16.enabled": "model.dtype",
    "fp16.enabled": "model.dtype",
    "torch_autocast": "runtime.mixed_precision",
    "activation_checkpointing": "model.gradient_checkpointing",
    "tensorboard": "monitor.tensorboard",
    "wandb": "monitor.wandb",
    "compression_training": "learner=deepspeed trains the weights as they are",
    "data_efficiency": "data.*",
    "curriculum_learning": "data.*",
    "prescale_gradients": "algorithm.aggregation",
    "gradient_predivide_factor": "algorithm.aggregation",
}
"""Keys that a file may not set, and what says the same in Shoal."""


def deepspeed_settings(cfg: ShoalConfig, runtime: Runtime) -> dict[str, Any]:
    """DeepSpeed's configuration for one rank: the file of `deepspeed.config`, with what Shoal's keys say.

    Raises:
        ConfigError: the file cannot be read, or contradicts Shoal's keys.
    """
    learner = cfg.learner
    zero: dict[str, Any] = {"stage": learner.zero_stage, "overlap_comm": False}
    if learner.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    if learner.offload_parameters:
        zero["offload_param"] = {"device": "cpu"}
    half = runtime.param_dtype is torch.bfloat16
    ours: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,  # a step ends where Shoal says so
        # At stage 0 the norm is taken and clipped where a gradient that is not finite can be told: see `RankOptimizer`.
        "gradient_clipping": cfg.optimizer.max_grad_norm if learner.zero_stage else 0.0,
        "zero_optimization": zero,
        # Else DeepSpeed wants an Adam of its own, which it compiles.
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31 - 1,
    }
    if half:
        ours["bf16"] = {"enabled": True, "check_grad_overflow": True}
    elif runtime.param_dtype is torch.float16:
        ours["fp16"] = {"enabled": True, "initial_scale_power": 16, "hysteresis": 1, "loss_scale_window": 2000}
    if runtime.param_dtype.itemsize == 2:
        ours["data_types"] = {"grad_accum_dtype": "fp32"}
    return merged(read_file(cfg.learner.deepspeed_config), ours)


def read_file(name: str | None) -> dict[str, Any]:
    """What a configuration file of the user's says.

    Raises:
        ConfigError: it cannot be read, is no JSON object, or sets what a key of Shoal's says.
    """
    if name is None:
        return {}
    key = f"learner.deepspeed_config={name}"
    try:
        found = json.loads(Path(name).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{key} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{key} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{key} is no JSON object")
    for path, value in _paths(found):
        # Scripts that fill such files in leave "auto" for what the trainer knows.
        ours = next((OURS[name] for name in OURS if path == name or path.startswith(f"{name}.")), None)
        if ours is not None and value != "auto":
            raise ConfigError(f"{key} sets {path}={value!r}, which {ours} says in Shoal: take it out of the file")
    return _without_auto(found)


def merged(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """Both, nested objects too; what both have is `ours`."""
    found = dict(theirs)
    for key, value in ours.items():
        before = found.get(key)
        found[key] = merged(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return found


def _paths(value: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Every key by its dotted path, with its value; a section has none of its own."""
    for key, one in value.items():
        if isinstance(one, Mapping):
            yield from _paths(one, f"{before}{key}.")
        else:
            yield f"{before}{key}", one


def _without_auto(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _without_auto(one) if isinstance(one, Mapping) else one for key, one in value.items() if one != "auto"}
