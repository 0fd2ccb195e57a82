"""Places learner, engine and reference on the GPUs of one machine. Pure: the GPUs are a list."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import floor
from typing import Any

from shoal.config import ShoalConfig
from shoal.config.device_keys import devices_asked, own_processes, own_reference
from shoal.config.keys import set_value
from shoal.errors import ConfigError

ALONE, BESIDE_LEARNER = 0.9, 0.45
"""Shares of a GPU's memory that the vLLMs on it take together, where none is configured."""


@dataclass(frozen=True)
class Device:
    """A GPU. `index` is torch's in this process, `entry` its name in CUDA_VISIBLE_DEVICES, `memory` in bytes."""

    index: int
    entry: str
    name: str = ""
    memory: int = 0


@dataclass(frozen=True)
class DevicePlan:
    """Who is where, by torch's index. On a CPU and on Metal (`kind`) all lists are empty: there is one device.

    Attributes:
        engine: The devices of each server; those of the learner for an engine in its process; empty for endpoints.
        reference: Empty where this machine holds none beside the policy.
    """

    kind: str = "cpu"
    devices: tuple[Device, ...] = ()
    learner: tuple[int, ...] = ()
    engine: tuple[tuple[int, ...], ...] = ()
    reference: tuple[int, ...] = ()
    engine_is_vllm: bool = False
    reference_is_vllm: bool = False

    def engine_environment(self, number: int) -> dict[str, str]:
        """The variable that gives the number-th process of the engine its devices; empty where there are no GPUs."""
        return self._environment(self.engine[number]) if self.engine else {}

    def reference_environment(self) -> dict[str, str]:
        """The same for the process of the reference."""
        return self._environment(self.reference) if self.reference else {}

    def engine_share(self) -> float:
        """The share of each GPU's memory for one vLLM of the engine: all of them take the same."""
        return min((self._share(block) for block in self.engine), default=ALONE)

    def reference_share(self) -> float:
        """The share of each GPU's memory for the vLLM of the reference."""
        return self._share(self.reference) if self.reference else ALONE

    def idle(self) -> list[int]:
        """Devices that nothing is on."""
        used = {*self.learner, *self.reference, *(index for block in self.engine for index in block)}
        return [one.index for one in self.devices if one.index not in used]

    def vllms_on(self, index: int) -> int:
        """How many vLLMs take a share of this device's memory."""
        servers = sum(index in block for block in self.engine) if self.engine_is_vllm else 0
        return servers + (self.reference_is_vllm and index in self.reference)

    def _share(self, block: Sequence[int]) -> float:
        together = BESIDE_LEARNER if set(block) & set(self.learner) else ALONE
        return floor(100 * together / max(1, *(self.vllms_on(index) for index in block))) / 100

    def _environment(self, block: Sequence[int]) -> dict[str, str]:
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.devices[index].entry for index in block)}


def plan_devices(c: ShoalConfig, devices: Sequence[Device], kind: str, first: int = 0) -> DevicePlan:
    """The plan for these GPUs. `kind` is the learner's type of device, `first` the index that torch would take for it.

    The learner has the first device, servers the last ones, a reference server what is left. Parts share a device only
    where the configuration says so or where there are too few; whether memory holds them is another question
    (`refuse_too_much`). Source and order of the steps do not matter: what is resident stays so in every mode.

    Raises:
        ConfigError: devices that are not there, or too few for what was asked; with the smallest change that works.
    """
    if kind != "cuda":
        for part in ("learner", "engine", "reference"):
            if getattr(c, part).devices:
                raise ConfigError(
                    f"{part}.devices={getattr(c, part).devices} are numbers of GPUs, and this machine computes on its "
                    f"{kind}: leave {part}.devices out"
                )
        return DevicePlan(kind)
    by_hand = _by_hand(c, devices)
    learner = by_hand["learner"] or (_learner(c, devices, by_hand, first),)
    free = [one.index for one in devices if one.index not in {*learner, *by_hand["engine"], *by_hand["reference"]}]
    refuse_too_few(c, devices, free)
    reserved = 0 if by_hand["reference"] or not own_reference(c) else c.reference.num_devices
    blocks = _engine(c, by_hand["engine"], learner, free[: len(free) - reserved], len(devices))
    free = [index for index in free if all(index not in block for block in blocks)]
    reference = _reference(c, by_hand["reference"], learner, free, len(devices))
    vllm = c.engine.kind in ("vllm", "vllm_server") and not c.engine.vllm.endpoints
    served = bool(reference) and c.reference.kind == "vllm_launch"
    return DevicePlan(kind, tuple(devices), learner, blocks, reference, vllm, served)


def smallest_change(
    c: ShoalConfig, candidates: Sequence[dict[str, Any]], works: Any, otherwise: str = "use fewer parts"
) -> str:
    """The first of these changes by key under which `works(changed)` raises no ConfigError, as overrides."""
    for changes in candidates:
        changed = deepcopy(c)
        for name, value in changes.items():
            set_value(changed, name, value)
        if changed == c:
            continue
        try:
            works(changed)
        except ConfigError:
            continue
        return "set " + " ".join(f"{name}={_written(value)}" for name, value in changes.items())
    return otherwise


def _written(value: Any) -> str:
    return str(value).replace(" ", "")


def _by_hand(c: ShoalConfig, devices: Sequence[Device]) -> dict[str, tuple[int, ...]]:
    """The devices that were given by hand, by part."""
    found = {part: tuple(getattr(c, part).devices) for part in ("learner", "engine", "reference")}
    if not own_reference(c):
        found["reference"] = ()
    for part, given in found.items():
        if max(given, default=-1) >= len(devices):
            others = {index for other, taken in found.items() if other != part for index in taken}
            left = [index for index in range(len(devices)) if index not in others] or list(range(len(devices)))
            fix = left[-len(given) :] if part != "learner" else left[: len(given)]
            seen = ", ".join(one.entry for one in devices)
            raise ConfigError(
                f"{part}.devices={list(given)}: this process sees {len(devices)} GPU{'s' * (len(devices) != 1)} "
                f"({seen}), numbered from 0: set {part}.devices={_written(fix)}"
            )
    return found


def _learner(c: ShoalConfig, devices: Sequence[Device], by_hand: dict[str, tuple[int, ...]], first: int) -> int:
    if c.runtime.device.startswith("cuda:") or c.engine.kind == "vllm":
        return first
    taken = {*by_hand["engine"], *by_hand["reference"]}
    return next((index for index in (first, *range(len(devices))) if index not in taken), first)


def refuse_too_few(c: ShoalConfig, devices: Sequence[Device], free: Sequence[int]) -> None:
    """Raises ConfigError where more devices were asked for by number than are free of what was given by hand."""
    count, size, _ = own_processes(c)
    asked = {"engine": c.engine.num_devices if count else 0}
    asked["reference"] = c.reference.num_devices if own_reference(c) else 0
    if sum(asked.values()) <= len(free):
        return
    fewer = max((len(free) - asked["reference"]) // size * size, 0)
    candidates: list[dict[str, Any]] = [{"engine.num_devices": fewer}] if asked["engine"] and fewer else []
    candidates += [{"reference.num_devices": 0}] if asked["reference"] else []
    candidates += [{"engine.num_devices": 0}, {"engine.num_devices": 0, "reference.num_devices": 0}]
    candidates += [{**candidates[-1], "engine.vllm.tensor_parallel": 1}]
    words = " and ".join(f"{part}.num_devices={count}" for part, count in asked.items() if count)

    def works(changed: ShoalConfig) -> None:
        plan_devices(changed, devices, "cuda")

    raise ConfigError(
        f"{words}: beside the learner {'is' if len(free) == 1 else 'are'} {len(free)} of the {len(devices)} GPUs that "
        f"this process sees: {smallest_change(c, candidates, works)}"
    )


def _engine(
    c: ShoalConfig, by_hand: tuple[int, ...], learner: tuple[int, ...], free: Sequence[int], there: int
) -> tuple[tuple[int, ...], ...]:
    """The devices of each process of the engine; the first server has the last ones."""
    servers, size, _ = own_processes(c)
    if c.engine.kind == "vllm":
        if learner[0] != 0:
            raise ConfigError(
                f"engine=vllm runs on GPU 0 of this process, and the learner would be on GPU {learner[0]}: leave "
                "learner.devices and runtime.device out and set CUDA_VISIBLE_DEVICES, or set engine=vllm_server "
                "weight_sync=broadcast"
            )
        _refuse_too_wide("engine.vllm.tensor_parallel", size, there)
        return (tuple(range(size)),)
    if c.cluster.kind == "ray":  # on nodes, beside which this machine may have none
        return ()
    if not servers:
        return () if c.engine.vllm.endpoints else (learner,)
    if by_hand:
        blocks = [by_hand[start : start + size] for start in range(0, len(by_hand), size)]
        return tuple(blocks[number % len(blocks)] for number in range(servers))
    _refuse_too_wide("engine.vllm.tensor_parallel", size, there)
    count = devices_asked(c, "engine") // size or min(servers, len(free) // size)
    last = list(free) if count else list(range(there))
    blocks = [tuple(last[len(last) - (number + 1) * size :][:size]) for number in range(max(count, 1))]
    return tuple(blocks[number % len(blocks)] for number in range(servers))


def _reference(
    c: ShoalConfig, by_hand: tuple[int, ...], learner: tuple[int, ...], free: Sequence[int], there: int
) -> tuple[int, ...]:
    if not own_reference(c):
        return ()
    if by_hand:
        return by_hand
    served = c.reference.kind == "vllm_launch"
    size = c.reference.num_devices or (c.reference.tensor_parallel if served else 0)
    if served:
        _refuse_too_wide("reference.tensor_parallel", size, there)
    if size and len(free) >= size:
        return tuple(free[:size])
    return tuple(range(size)) if size > 1 else learner


def _refuse_too_wide(key: str, size: int, there: int) -> None:
    if size > there:
        raise ConfigError(f"{key}={size}: this process sees {there} GPU{'s' * (there != 1)}: set {key}={there}")
