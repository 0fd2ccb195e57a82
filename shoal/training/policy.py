"""The policy that a configuration names, the built-in one among them."""

from __future__ import annotations

from dataclasses import replace

from shoal.config import ShoalConfig
from shoal.learners.model import Policy, load_policy
from shoal.monitor.progress import ProgressDisplay
from shoal.runtime import Runtime
from shoal.tasks.warm_start import Recipe, warm_started_model


def open_policy(cfg: ShoalConfig, runtime: Runtime) -> Policy:
    """Loads the policy; makes the built-in one first where it is asked for."""
    if cfg.model.name != "story":
        return load_policy(cfg.model, runtime)
    recipe = Recipe()
    display = ProgressDisplay(cfg.monitor.progress, recipe.steps)
    try:
        with display.task("warm start (once; then cached)", recipe.steps) as advance:
            folder = warm_started_model(recipe, lambda step, steps, loss: advance())
    finally:
        display.close()
    return load_policy(replace(cfg.model, name=str(folder)), runtime)
