"""What `shoal train --dry-run` prints: the configuration, where it would run, and the memory that it would take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from omegaconf import OmegaConf

from shoal.cli.forecast import forecast_lines
from shoal.config import ShoalConfig
from shoal.config.cluster_keys import node_count, rank_count
from shoal.config.compose import escaped
from shoal.config.device_keys import own_processes
from shoal.learners.device_memory import device_bytes, plan_parts, refuse_too_much
from shoal.learners.memory_plan import estimate, of_one_rank, peak
from shoal.runtime import Runtime, planned_runtime
from shoal.training.names import check_names, check_places
from shoal.training.policy import model_info

MIB = 2**20


def plan_lines(config: ShoalConfig) -> Iterator[str]:
    """The plan, line by line. No weights are read, and nothing is written.

    Raises:
        ConfigError, DataError: the machine, the model, the data or a name in them is not there; what could be said
            before has been yielded.
    """
    yield from OmegaConf.to_yaml(OmegaConf.create(escaped(asdict(config)))).splitlines()
    check_names(config)
    check_places(config)
    runtime = planned_runtime(config)
    products = runtime.compute_dtype or runtime.param_dtype
    yield "\nDevice plan"
    yield f"  device             {runtime.device}"
    yield f"  parameters         {_name(runtime.param_dtype)}"
    yield f"  matrix products    {_name(products)}"
    yield f"  attention          {runtime.attention}"
    yield from (f"  note: {note}" for note in runtime.notes)
    yield from (f"  {line}" for line in (*cluster_lines(config), *vllm_lines(config, runtime.device.type)))
    info = model_info(config)
    parts = of_one_rank(config, estimate(config, runtime, info))
    yield from device_table(config, runtime, parts)
    refuse_too_much(config, runtime, info)
    yield "\nMemory estimate (MiB)"
    yield from (f"  {part:<18} {size / MIB:>10,.1f}" for part, size in parts.items() if size)
    yield f"  {'peak':<18} {peak(parts) / MIB:>10,.1f}"
    yield from forecast_lines(config)


def device_table(config: ShoalConfig, runtime: Runtime, parts: dict[str, int]) -> Iterator[str]:
    """A row for each device: its name in CUDA_VISIBLE_DEVICES, what is on it, the memory that it takes and there is."""
    plan = runtime.plan
    held = device_bytes(config, plan, parts)
    if not plan.devices:
        there = "learner" + (", engine" if config.engine.kind == "torch" and not config.engine.processes else "")
        there += ", reference" if config.algorithm.kl_coef and config.reference.kind == "model" else ""
        yield f"\n  device  holds                          MiB\n  {plan.kind:<7} {there:<28} {_sum(held[0]):>5,.0f}"
        return
    yield "\n  GPU  visible as  name                     holds                             MiB  of MiB"
    for one in plan.devices:
        there = ", ".join(_with_servers(config, plan.engine, part, one.index) for part in plan_parts(plan, one.index))
        took, memory = _sum(held[one.index]), one.memory / MIB
        yield (
            f"  {one.index:<3}  {one.entry[:10]:<10}  {one.name[:23]:<23}  {there or 'nothing':<28}  {took:>8,.0f}  "
            f"{memory:>,.0f}"
        )


def _with_servers(config: ShoalConfig, engine: tuple[tuple[int, ...], ...], part: str, index: int) -> str:
    if part != "engine" or not own_processes(config)[0]:
        return part
    return "engine " + "+".join(str(number) for number, block in enumerate(engine) if index in block)


def _sum(held: dict[str, int]) -> float:
    return sum(held.values()) / MIB


def cluster_lines(config: ShoalConfig) -> Iterator[str]:
    """What Ray would place. Its nodes are looked at only where a run starts, which prints the plan then."""
    cluster = config.cluster
    if config.learner.kind == "deepspeed":
        each = f"{cluster.learners_per_node} on each node" if cluster.learners_per_node else f"{rank_count(config)}"
        yield f"learner            ranks of DeepSpeed: {each}, ZeRO stage {config.learner.zero_stage}"
    if cluster.kind == "ray":
        nodes = cluster.nodes or node_count(config) or "all"
        engines = (
            f"{cluster.engines_per_node} engines on each" if cluster.engines_per_node else "engines spread over them"
        )
        yield f"cluster            {nodes} node(s) of Ray, {engines}"


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
        on = (
            f"{vllm.servers} vLLM server(s) on {vllm.host}"
            if config.cluster.kind == "local"
            else "vLLM servers on nodes"
        )
        yield f"engine             {on}, {ports}: weights and {takes} each"
    if config.algorithm.kl_coef and config.reference.kind != "model":
        port = config.reference.port or "a free port"
        yield f"reference          vLLM on {config.reference.host}, {port} ({config.reference.kind})"


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
