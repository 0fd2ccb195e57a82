"""The optimizer's side of a step: master weights, clipping, loss scaling, schedule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from shoal.config.nodes.model import OptimizerConfig
from shoal.errors import ConfigError
from shoal.learners.base import Watcher
from shoal.runtime import Runtime

FIRST_SCALE = 2.0**16


class PolicyOptimizer:
    """AdamW over a model's trainable parameters.

    Where these have 16 bits, the optimizer holds float32 masters; gradients are added up in float32 as they arrive,
    and each step writes the rounded masters back. `total_steps` counts optimizer steps of the whole run.
    """

    def __init__(self, model: nn.Module, cfg: OptimizerConfig, runtime: Runtime, total_steps: int) -> None:
        self.cfg = cfg
        self.runtime = runtime
        self.names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.masters = [
            parameter.detach().float().requires_grad_() if parameter.dtype.itemsize == 2 else parameter
            for parameter in self.parameters
        ]
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            if master is not parameter:
                parameter.register_post_accumulate_grad_hook(_adder(master))
        self.optimizer = make_adamw(self.masters, cfg, runtime)
        self.schedule = make_schedule(self.optimizer, cfg, total_steps)
        self.scaler = torch.amp.GradScaler(runtime.device.type, init_scale=FIRST_SCALE, enabled=runtime.loss_scaling)
        self.steps = 0
        self.skipped = 0

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.schedule.get_last_lr()[0])

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        for master in self.masters:
            master.grad = None

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of one micro-batch's loss."""
        self.scaler.scale(loss).backward()

    def gradient_norm(self) -> Tensor:
        """The 2-norm of the whole gradient, after undoing the loss scale; a scalar on the device.

        A parameter that no micro-batch reached has gradient 0 from here on: momentum and decay act on it as they
        would with any other division into micro-batches.
        """
        for master in self.masters:
            if master.grad is None:
                master.grad = torch.zeros_like(master)
        if self.runtime.loss_scaling:
            self.scaler.scale(torch.zeros((), device=self.runtime.device))  # makes the scale where no loss did
            self.scaler.unscale_(self.optimizer)
        return torch.nn.utils.get_total_norm([master.grad for master in self.masters if master.grad is not None])

    @property
    def scale(self) -> float:
        """What losses are multiplied with; 1 without loss scaling."""
        return float(self.scaler.get_scale())

    def overflown(self) -> None:
        """Under loss scaling, in place of `step`: forgets the gradients; lowers the scale where they overflowed."""
        self.scaler.update()
        self.skipped += 1
        self.zero_grad()

    def step(self, norm: Tensor, watcher: Watcher | None = None) -> None:
        """Clips to `max_grad_norm`, writes the weights, and moves the schedule on. `norm` is finite. `watcher` is told
        before and after the write."""
        if self.cfg.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(self.masters, self.cfg.max_grad_norm, norm)
        if watcher:
            watcher.before_write()
        try:
            self.scaler.step(self.optimizer)
            # The fused kernel leaves the version counters alone, by which copies of the weights know that they are old.
            increment_version(self.masters)
            self._write_back()
        finally:
            if watcher:
                watcher.after_write()
        self.scaler.update()
        self.steps += 1
        self.schedule.step()

    @torch.no_grad()
    def _write_back(self) -> None:
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            if master is not parameter:
                parameter.copy_(master)

    def state_dict(self) -> dict[str, Any]:
        """Moments, masters, scale, counts; tensors on the CPU, copied. Nothing that the configuration says."""
        masters = {
            name: master.detach().cpu().clone()
            for name, parameter, master in zip(self.names, self.parameters, self.masters, strict=True)
            if master is not parameter
        }
        return {
            "optimizer": on_cpu(self.optimizer.state_dict()["state"]),
            "scaler": self.scaler.state_dict(),
            "masters": masters,
            "steps": self.steps,
            "skipped": self.skipped,
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Moments, masters, scale and position in the schedule of `state`; rates, decay and the schedule itself are
        those of the configuration. Call it when the parameters have their values: masters that `state` lacks, because
        the parameters had 32 bits, are made from them."""
        for name, parameter, master in zip(self.names, self.parameters, self.masters, strict=True):
            master.copy_(state["masters"].get(name, parameter))
        own = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["optimizer"], "param_groups": own})
        self.steps, self.skipped = state["steps"], state["skipped"]
        go_to(self.schedule, self.steps)
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])


def _adder(master: Tensor) -> Callable[[Tensor], None]:
    """A hook that moves a fresh 16-bit gradient into the master's float32 sum."""

    def add(parameter: Tensor) -> None:
        assert parameter.grad is not None
        if master.grad is None:
            master.grad = parameter.grad.float()
        else:
            master.grad += parameter.grad
        parameter.grad = None

    return add


def make_adamw(
    parameters: Sequence[Tensor],
    cfg: OptimizerConfig,
    runtime: Runtime,
    dimensions: Callable[[Tensor], int] = lambda one: one.ndim,
) -> torch.optim.Optimizer:
    """AdamW, fused where there is a kernel. Weight decay spares vectors (norms, biases), as is the custom: `dimensions`
    tells them, also where a tensor is sharded.

    Raises:
        ConfigError: adamw_8bit without CUDA or without bitsandbytes.
    """
    groups = [
        {"params": [one for one in parameters if dimensions(one) >= 2], "weight_decay": cfg.weight_decay},
        {"params": [one for one in parameters if dimensions(one) < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if len(cfg.betas) != 2:
        raise ConfigError(f"optimizer.betas={cfg.betas}: AdamW takes two, such as [0.9, 0.95]")
    betas = (cfg.betas[0], cfg.betas[1])
    if cfg.name == "adamw":
        fused = runtime.device.type in ("cpu", "cuda", "mps")
        return torch.optim.AdamW(groups, lr=cfg.lr, betas=betas, eps=cfg.eps, fused=fused)
    if runtime.device.type != "cuda":
        raise ConfigError(f"optimizer.name=adamw_8bit needs CUDA, but the device is {runtime.device}; use adamw")
    try:
        from bitsandbytes.optim import AdamW8bit  # noqa: PLC0415 - an optional package
    except ImportError as error:
        raise ConfigError("optimizer.name=adamw_8bit needs bitsandbytes: pip install 'shoal-rl[optim8bit]'") from error
    return AdamW8bit(groups, lr=cfg.lr, betas=betas, eps=cfg.eps)


def make_schedule(optimizer: torch.optim.Optimizer, cfg: OptimizerConfig, total_steps: int) -> LambdaLR:
    """Hugging Face's schedule of that name, after a warm-up whose steps take 1/n, 2/n ... n/n of the peak rate.

    Hugging Face's own warm-up begins at 0, which would waste the first step's batch.

    Raises:
        ConfigError: the schedule does not take an argument of `scheduler_kwargs`, or the learning rate.
    """
    warmup = cfg.warmup_steps or round(cfg.warmup_ratio * total_steps)
    # Hugging Face's `constant` ignores the warm-up.
    name = "constant_with_warmup" if cfg.scheduler == "constant" else cfg.scheduler
    try:
        schedule = get_scheduler(name, optimizer, warmup, max(total_steps, 1), cfg.scheduler_kwargs)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"optimizer.scheduler={cfg.scheduler} refuses optimizer.scheduler_kwargs={cfg.scheduler_kwargs}: {error}"
        ) from error
    assert isinstance(schedule, LambdaLR), name
    schedule.lr_lambdas = [partial(_one_step_earlier, rule, warmup) for rule in schedule.lr_lambdas]
    go_to(schedule, 0)
    return schedule


def _one_step_earlier(rule: Callable[[int], float], warmup: int, step: int) -> float:
    return rule(step + 1 if step < warmup else step)


def go_to(schedule: LambdaLR, step: int) -> None:
    """Puts a schedule at the step after `step` optimizer steps, by its own rules and rates."""
    schedule.last_epoch = step
    rules = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    lrs = [float(base) * rule(step) for base, rule in rules]
    schedule._last_lr = list(lrs)
    for group, lr in zip(schedule.optimizer.param_groups, lrs, strict=True):
        group["lr"] = lr


def on_cpu(value: Any) -> Any:
    """A copy of nested dicts and lists with all tensors copied to the CPU."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: on_cpu(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(on_cpu(one) for one in value)
    return value
