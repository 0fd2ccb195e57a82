"""What `num_devices` and `devices` of learner, engine and reference may say, whatever the machine has."""

from __future__ import annotations

from shoal.config.root import ShoalConfig
from shoal.errors import ConfigError

PARTS = ("learner", "engine", "reference")


def devices_asked(c: ShoalConfig, part: str) -> int:
    """How many devices the configuration gives a part, by number or by hand. 0: it does not say."""
    node = getattr(c, part)
    return node.num_devices or len(node.devices)


def own_reference(c: ShoalConfig) -> bool:
    """Whether the run has a reference that this machine holds beside the policy."""
    r = c.reference
    borrowed = r.kind == "model" and c.model.train == "lora" and not r.name and not r.polyak_every
    return c.algorithm.kl_coef > 0 and r.kind != "vllm_endpoint" and not borrowed


def own_processes(c: ShoalConfig) -> tuple[int, int, str]:
    """How many processes the run starts for the engine, how many devices each takes, and the key of their number. 0
    where the engine is in the learner's process, or runs already."""
    if c.engine.kind == "torch":
        return c.engine.processes, 1, "engine.processes"
    launched = c.engine.kind == "vllm_server" and not c.engine.vllm.endpoints
    return c.engine.vllm.servers * launched, c.engine.vllm.tensor_parallel, "engine.vllm.servers"


def check_device_keys(c: ShoalConfig) -> None:
    """Refuses what no machine could do.

    Raises:
        ConfigError: with the smallest change that works.
    """
    for part in PARTS:
        _check_by_itself(c, part)
    _check_learner(c)
    _check_engine(c)
    _check_reference(c)


def _given(c: ShoalConfig, part: str) -> str:
    """The key and value that were given, as an error line says them."""
    node = getattr(c, part)
    return f"{part}.devices={node.devices}" if node.devices else f"{part}.num_devices={node.num_devices}"


def _check_by_itself(c: ShoalConfig, part: str) -> None:
    node = getattr(c, part)
    if node.devices and node.num_devices:
        raise ConfigError(
            f"{part}.num_devices={node.num_devices} and {part}.devices={node.devices} both place the {part}: leave one "
            "of them out"
        )
    if min(node.devices, default=0) < 0 or len(set(node.devices)) < len(node.devices):
        raise ConfigError(f"{part}.devices={node.devices}: each a different number from 0 on, such as [0]")
    without_cuda = {"runtime.target": ("cpu", "mac"), "runtime.device": ("cpu", "mps")}
    values = {"runtime.target": c.runtime.target, "runtime.device": c.runtime.device}
    for key, kinds in without_cuda.items():
        if node.devices and values[key] in kinds:
            raise ConfigError(
                f"{part}.devices={node.devices} are numbers of GPUs, but {key}={values[key]} uses none: leave "
                f"{part}.devices out"
            )


def _check_learner(c: ShoalConfig) -> None:
    if c.learner.kind == "local" and devices_asked(c, "learner") > 1:
        fix = f"learner.devices=[{c.learner.devices[0]}]" if c.learner.devices else "learner.num_devices=1"
        raise ConfigError(
            f"{_given(c, 'learner')}: learner=local trains on one device: set {fix}, or learner=deepspeed"
        )
    named = c.runtime.device.partition(":")[2]
    if c.learner.devices and named and int(named) not in c.learner.devices:
        raise ConfigError(
            f"learner.devices={c.learner.devices} and runtime.device={c.runtime.device} place the learner on different "
            "devices: leave one of them out"
        )


def _check_engine(c: ShoalConfig) -> None:
    asked, (count, size, key) = devices_asked(c, "engine"), own_processes(c)
    if not asked:
        return
    if not count and not c.engine.vllm.endpoints:
        own = size if c.engine.kind == "vllm" else 1
        if c.engine.devices or asked != own:
            raise ConfigError(
                f"{_given(c, 'engine')}: engine={c.engine.kind} runs in the learner's process, on its device: leave "
                f"it out, or set engine=torch engine.processes={max(asked // size, 1)} weight_sync=broadcast"
            )
    elif c.engine.vllm.endpoints:
        raise ConfigError(
            f"{_given(c, 'engine')}: the servers of engine.vllm.endpoints run on devices of their own: leave it out"
        )
    elif asked % size:
        raise ConfigError(
            f"{_given(c, 'engine')}: each server takes engine.vllm.tensor_parallel={size} devices: give "
            f"{(asked // size + 1) * size}, or set engine.vllm.tensor_parallel=1"
        )
    elif asked > count * size:
        raise ConfigError(
            f"{_given(c, 'engine')}: {key}={count} with {size} device{'s' * (size > 1)} each use {count * size}: set "
            f"{key}={asked // size}"
        )


def _check_reference(c: ShoalConfig) -> None:
    asked, size = devices_asked(c, "reference"), c.reference.tensor_parallel
    if not asked or not c.algorithm.kl_coef:
        return
    if c.reference.kind == "vllm_endpoint":
        raise ConfigError(
            f"{_given(c, 'reference')}: reference.kind=vllm_endpoint runs on devices of its own: leave it out"
        )
    if not own_reference(c):
        raise ConfigError(
            f"{_given(c, 'reference')}: the reference is the policy's own base without its adapter, which takes no "
            "device: leave it out"
        )
    if c.reference.kind == "model" and asked > 1:
        raise ConfigError(
            f"{_given(c, 'reference')}: reference.kind=model is on one device: give one, or set "
            f"reference.kind=vllm_launch reference.tensor_parallel={asked}"
        )
    if c.reference.kind == "vllm_launch" and asked != size:
        raise ConfigError(
            f"{_given(c, 'reference')}: the server takes reference.tensor_parallel={size}: set "
            f"reference.tensor_parallel={asked}"
        )
