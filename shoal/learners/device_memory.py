"""What each GPU of the plan would hold, and the refusal of parts that do not fit on one together."""

from __future__ import annotations

from math import floor
from typing import Any

from shoal.config import ShoalConfig
from shoal.devices.plan import DevicePlan, plan_devices, smallest_change
from shoal.errors import ConfigError
from shoal.learners.memory_plan import estimate, peak
from shoal.models.info import ModelInfo
from shoal.runtime import Runtime

GIB = 2**30
ROOM = 1.2  # what a vLLM needs at least, in sizes of its weights


def device_bytes(c: ShoalConfig, plan: DevicePlan, parts: dict[str, int]) -> dict[int, dict[str, int]]:
    """Bytes by part on each device, at the most. `parts` is `estimate`'s; an engine in the learner's process and a
    reference on its device are counted with the learner, since they take turns. A CPU and Metal are device 0."""
    apart = bool(plan.reference) and plan.reference != plan.learner and not plan.reference_is_vllm
    own = {**parts, "reference": 0} if apart else parts
    own = {**own, "engine": 0, "kv_cache": 0} if c.engine.processes else own
    found: dict[int, dict[str, int]] = {(plan.learner or (0,))[0]: {"learner": peak(own)}}
    for one in plan.devices:
        here = found.setdefault(one.index, {})
        servers = sum(one.index in block for block in plan.engine) if plan.engine_is_vllm else 0
        if servers:
            share = c.engine.vllm.memory_share or plan.engine_share()
            here["engine"] = servers * round(share * one.memory)
        processes = sum(one.index in block for block in plan.engine) if c.engine.kind == "torch" else 0
        if c.engine.processes and processes:
            here["engine"] = processes * (parts["weights"] + parts["kv_cache"])
        if one.index in plan.reference and plan.reference_is_vllm:
            here["reference"] = round((c.reference.memory_share or plan.reference_share()) * one.memory)
        elif one.index in plan.reference and apart:
            here["reference"] = parts["reference"] + parts["logits"]
    return found


def refuse_too_much(c: ShoalConfig, runtime: Runtime, info: ModelInfo) -> None:
    """Refuses parts that share a GPU whose memory does not hold them all. What is alone on one is not looked at here:
    the start-up check does.

    Raises:
        ConfigError: with the smallest change that works.
    """
    plan = runtime.plan
    if not any(len(plan_parts(plan, one.index)) > 1 for one in plan.devices):
        return
    parts = estimate(c, runtime, info)
    over = _too_much(c, plan, parts)
    if over is None:
        return
    index, held = over

    def works(changed: ShoalConfig) -> None:
        found = plan_devices(changed, plan.devices, plan.kind, plan.learner[0])
        if _too_much(changed, found, estimate(changed, runtime, info)) is not None:
            raise ConfigError("this does not fit either")

    memory = plan.devices[index].memory
    words = " + ".join(f"{part} {size / GIB:.1f}" for part, size in held.items())
    fix = smallest_change(c, _candidates(c, plan, parts, index, held), works, "use a smaller model, or another GPU")
    raise ConfigError(
        f"GPU {index} has {memory / GIB:.1f} GiB, and what shares it takes {sum(held.values()) / GIB:.1f} ({words}): "
        f"{fix}"
    )


def plan_parts(plan: DevicePlan, index: int) -> list[str]:
    """The parts on a device, in words."""
    found = ["learner"] if index in plan.learner else []
    found += ["engine"] if any(index in block for block in plan.engine) else []
    return found + (["reference"] if index in plan.reference else [])


def _too_much(c: ShoalConfig, plan: DevicePlan, parts: dict[str, int]) -> tuple[int, dict[str, int]] | None:
    """The first device on which several parts together take more than there is, with what they take."""
    for index, held in device_bytes(c, plan, parts).items():
        if len(held) > 1 and 0 < plan.devices[index].memory < sum(held.values()):
            return index, held
    return None


def _candidates(
    c: ShoalConfig, plan: DevicePlan, parts: dict[str, int], index: int, held: dict[str, int]
) -> list[dict[str, Any]]:
    """Changes to try, the smallest first: an idle device, then smaller shares, then smaller micro-batches."""
    found: list[dict[str, Any]] = []
    idle, memory = plan.idle(), plan.devices[index].memory
    if c.engine.kind == "vllm_server" and "engine" in held and len(idle) >= c.engine.vllm.tensor_parallel:
        found.append({"engine.num_devices": 0, "engine.devices": idle[-c.engine.vllm.tensor_parallel :]})
    if c.engine.processes and "engine" in held and idle:
        found.append({"engine.num_devices": 0, "engine.devices": idle[-c.engine.processes :]})
    if idle and "reference" in held and c.reference.tensor_parallel == 1:
        found.append({"reference.num_devices": 0, "reference.devices": idle[:1]})
    for part, key in (("engine", "engine.vllm.memory_share"), ("reference", "reference.memory_share")):
        vllm = plan.engine_is_vllm if part == "engine" else plan.reference_is_vllm
        if vllm and part in held:
            count = sum(index in block for block in plan.engine) if part == "engine" else 1
            left = memory - sum(size for other, size in held.items() if other != part)
            share = floor(100 * left / memory / count) / 100
            if share * memory > ROOM * parts["weights"]:
                found.append({key: share})
    found += [{"learner.micro_batch_tokens": c.learner.micro_batch_tokens // by} for by in (2, 4, 8)]
    return found
