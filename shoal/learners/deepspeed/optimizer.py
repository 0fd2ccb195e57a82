"""A DeepSpeed engine as the optimizer of one rank: the same surface as `PolicyOptimizer`, where both have it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from shoal.config.nodes.model import OptimizerConfig
from shoal.learners.optimizer import go_to, make_schedule


class RankOptimizer:
    """Accumulates, reduces, clips and steps through DeepSpeed; the schedule is Shoal's.

    `total_steps` counts optimizer steps of the whole run. `world` is the number of ranks.
    """

    def __init__(self, engine: Any, cfg: OptimizerConfig, total_steps: int, world: int) -> None:
        self.engine = engine
        self.base: torch.optim.Optimizer = engine.basic_optimizer
        self.stage: int = engine.zero_optimization_stage()
        self.max_norm = cfg.max_grad_norm
        self.world = world
        self.schedule = make_schedule(self.base, cfg, total_steps)
        self.steps = 0
        self.skipped = 0
        self.norm = 0.0
        if self.stage == 0:
            self.base.register_step_pre_hook(self._clip)

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.schedule.get_last_lr()[0])

    @property
    def scale(self) -> float:
        """What losses are multiplied with; 1 without loss scaling."""
        return float(getattr(self.engine.optimizer, "loss_scale", 1.0))

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of one micro-batch's loss. DeepSpeed takes the mean over ranks; losses are sums."""
        self.engine.backward(loss * self.world, scale_wrt_gas=False)

    def step(self) -> bool:
        """Sums the gradients over ranks, clips, writes the weights and moves the schedule on; False, and nothing of
        it but that the gradients are forgotten, where the gradient is not finite. `norm` is its norm before clipping.
        """
        self.engine.step()
        if self.stage:
            self.norm = float(self.engine.get_global_grad_norm() or 0.0)
        applied = bool(self.engine.was_step_applied()) and torch.tensor(self.norm).isfinite().item()
        if not applied:
            return False
        self.steps += 1
        self.schedule.step()
        return True

    @torch.no_grad()
    def _clip(self, *_: Any) -> None:
        """Before a step at stage 0, whose gradients are whole: takes their norm and clips them, or forgets them where
        it is not finite, so that nothing is stepped on."""
        held = [one for group in self.base.param_groups for one in group["params"]]
        norm = torch.nn.utils.get_total_norm([one.grad for one in held if one.grad is not None])
        self.norm = float(norm)
        if not norm.isfinite():
            for one in held:
                one.grad = None
        elif self.max_norm:
            torch.nn.utils.clip_grads_with_norm_(held, self.max_norm, norm)

    def go_to(self, steps: int, skipped: int) -> None:
        """Puts the schedule after so many optimizer steps."""
        self.steps, self.skipped = steps, skipped
        go_to(self.schedule, steps)

    def scale_from(self, scale: float) -> None:
        """Goes on from a loss scale, where there is loss scaling."""
        scaler = getattr(self.engine.optimizer, "loss_scaler", None)
        if self.engine.fp16_enabled() and scaler is not None:
            scaler.cur_scale = scale
