"""What `shoal train --dry-run` prints: the configuration, where it would run, and the memory that it would take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from omegaconf import OmegaConf

from shoal.cli.forecast import forecast_lines
from shoal.config import ShoalConfig
from shoal.config.compose import escaped
from shoal.learners.memory_plan import estimate, peak
from shoal.runtime import resolve_runtime
from shoal.training.names import check_names
from shoal.training.policy import model_info

MIB = 2**20


def plan_lines(config: ShoalConfig) -> Iterator[str]:
    """The plan, line by line. No weights are read, and nothing is written.

    Raises:
        ConfigError: the machine or the model is not there; what could be said before has been yielded.
    """
    yield from OmegaConf.to_yaml(OmegaConf.create(escaped(asdict(config)))).splitlines()
    check_names(config)
    runtime = resolve_runtime(config.runtime, config.model)
    products = runtime.compute_dtype or runtime.param_dtype
    yield "\nDevice plan"
    yield f"  device             {runtime.device}"
    yield f"  parameters         {_name(runtime.param_dtype)}"
    yield f"  matrix products    {_name(products)}"
    yield f"  attention          {runtime.attention}"
    yield from (f"  note: {note}" for note in runtime.notes)
    yield from (f"  {line}" for line in vllm_lines(config, runtime.device.type))
    parts = estimate(config, runtime, model_info(config))
    yield "\nMemory estimate (MiB)"
    yield from (f"  {part:<18} {size / MIB:>10,.1f}" for part, size in parts.items() if size)
    yield f"  {'peak':<18} {peak(parts) / MIB:>10,.1f}"
    yield from forecast_lines(config)


def vllm_lines(config: ShoalConfig, device: str) -> Iterator[str]:
    """Which vLLMs the run would start or ask, and what memory they would take beside the learner's."""
    vllm = config.engine.vllm
    share = vllm.memory_share or (0.45 if config.engine.kind == "vllm" else 0.9)
    takes = f"{share:g} of a GPU's memory" if device == "cuda" else f"{vllm.cache_gib or 1:g} GiB of KV cache"
    if config.engine.kind == "vllm":
        yield f"engine             vLLM in this process: weights and {takes}"
    elif config.engine.kind == "vllm_server" and vllm.endpoints:
        yield f"engine             vLLM at {', '.join(vllm.endpoints)}"
    elif config.engine.kind == "vllm_server":
        ports = f"ports from {vllm.port}" if vllm.port else "free ports"
        yield f"engine             {vllm.servers} vLLM server(s) on {vllm.host}, {ports}: weights and {takes} each"
    if config.algorithm.kl_coef and config.reference.kind != "model":
        port = config.reference.port or "a free port"
        yield f"reference          vLLM on {config.reference.host}, {port} ({config.reference.kind})"


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
