"""Weights and optimizer states of a DeepSpeed engine, one whole tensor at a time, whatever holds which part of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from deepspeed.runtime.zero import GatheredParameters
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from shoal.learners.lora import adapted_modules, merged_weight, plain_weights

MOMENTS = ("exp_avg", "exp_avg_sq")


def whole(parameters: Sequence[Any], writer: int | None = None) -> AbstractContextManager[Any]:
    """The sharded ones among these are whole within the block, for reading; or for writing by rank `writer`.

    A parameter that is whole already is left alone: a gather within another would shard it again too early. One that
    is named twice, as tied ones are, is gathered once.
    """
    sharded = {id(one): one for one in parameters if is_sharded(one) and one.ds_status.name != "AVAILABLE"}
    return GatheredParameters(list(sharded.values()), modifier_rank=writer, enabled=bool(sharded))


def is_sharded(parameter: Any) -> bool:
    """Whether ZeRO-3 holds it in parts: its own `numel()` is then 0."""
    return hasattr(parameter, "ds_id")


def shape_of(parameter: Any) -> tuple[int, ...]:
    """The shape of the whole parameter."""
    return tuple(parameter.ds_shape if is_sharded(parameter) else parameter.shape)


@torch.no_grad()
def gathered_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """`merged_weights` of a model that may be sharded: one weight is whole at a time, with the adapters of its layer.
    All ranks must go through it together. Each is valid until the next is asked for."""
    adapted = adapted_modules(model)
    for name, parameter in plain_weights(model):
        module = adapted.get(name)
        held = [parameter]
        if module is not None:
            held += [one for part, one in module.named_parameters() if "lora_" in part]
        with whole(held):
            yield name, merged_weight(parameter, module)


class OptimizerState:
    """The float32 weights and the moments of the trained parameters of an engine."""

    def __init__(self, engine: Any, parameters: Mapping[str, nn.Parameter]) -> None:
        self.engine = engine
        self.parameters = parameters
        self.stage: int = engine.zero_optimization_stage()
        self.base: torch.optim.Optimizer = engine.basic_optimizer

    def link(self) -> None:
        """Makes the moments readable after steps: DeepSpeed links them at the first step of the first group alone."""
        if self.stage in (1, 2):
            self.engine.optimizer._hp_optimizer_states_linked = False
            self.engine.optimizer._lazy_init_hp_params_optimizer_state()

    @torch.no_grad()
    def read(self, name: str, moments: bool) -> dict[str, Tensor]:
        """`weight` in float32 and, where steps were taken and `link` was called, `exp_avg` and `exp_avg_sq`; whole.
        All ranks call it."""
        parameter = self.parameters[name]
        if self.stage == 0:
            found = {"weight": parameter.detach().float()}
            return found | {key: self.base.state[parameter][key] for key in MOMENTS if moments}
        found = {"weight": safe_get_full_fp32_param(parameter)}
        return found | {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS if moments}

    @torch.no_grad()
    def begin(self, steps: int) -> None:
        """Makes the moments after so many steps, which `write` then fills."""
        if self.stage == 0:
            flat = list(self.parameters.values())
        elif self.stage == 3:
            flat = list(self.engine.optimizer.fp32_partitioned_groups_flat)
        else:
            flat = list(self.engine.optimizer.single_partition_of_fp32_groups)
        self.base.state.clear()
        for one in flat if steps else ():
            zeros = {key: torch.zeros_like(one, dtype=torch.float32) for key in MOMENTS}
            self.base.state[one] = {"step": torch.tensor(float(steps)), **zeros}
        if steps:
            self.link()

    @torch.no_grad()
    def write(self, name: str, values: Mapping[str, Tensor]) -> None:
        """Sets what `read` gives. All ranks call it, with the same values."""
        parameter = self.parameters[name]
        device = self.engine.device
        moved = {key: value.to(device) for key, value in values.items()}
        weight = moved.pop("weight")
        if self.stage == 0:
            parameter.copy_(weight)
            for key, value in moved.items():
                self.base.state[parameter][key].copy_(value)
        elif self.stage == 3:
            with whole([parameter], writer=0):
                parameter.copy_(weight)
            safe_set_local_fp32_param(parameter, _part(parameter, weight))
            for key, value in moved.items():
                safe_set_local_optimizer_state(parameter, _part(parameter, value), key)
        else:
            parameter.copy_(weight)
            safe_set_full_fp32_param(parameter, weight.float())
            for key, value in moved.items():
                safe_set_full_optimizer_state(parameter, value, key)


def _part(parameter: Any, value: Tensor) -> Tensor:
    """This rank's part of a whole value as ZeRO-3 lays it out: equal parts, the last padded with 0."""
    size = parameter.ds_tensor.ds_numel
    flat = value.float().flatten()
    start = size * torch.distributed.get_rank()
    part = flat[start : start + size]
    return torch.nn.functional.pad(part, (0, size - len(part)))
