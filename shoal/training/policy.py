"""The model that a configuration names, the built-in one among them: with its weights, or what is known without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from shoal.config import ShoalConfig
from shoal.learners.model import Policy, load_policy
from shoal.models.info import ModelInfo, describe, read_info
from shoal.monitor.progress import ProgressDisplay
from shoal.runtime import Runtime
from shoal.tasks.story import story_tokenizer
from shoal.tasks.warm_start import Recipe, architecture, warm_started_model


def model_info(cfg: ShoalConfig) -> ModelInfo:
    """What is known of `cfg.model` without its weights; nothing is written.

    Raises:
        ConfigError: one line on what is missing or does not fit together.
    """
    if cfg.model.name != "story":
        return read_info(cfg.model)
    tokenizer = story_tokenizer()
    info = describe(architecture(Recipe(), tokenizer), tokenizer, [tokenizer.eos_token_id], cfg.model, cfg.model.name)
    _ = info.adapter  # refuses names of layers that are not there
    return info


def open_policy(cfg: ShoalConfig, runtime: Runtime, info: ModelInfo | None = None) -> Policy:
    """Loads the policy; makes the built-in one first where it is asked for. `info` is what `model_info` has said of
    it, where it was asked."""
    if cfg.model.name != "story":
        return load_policy(cfg.model, runtime, info)
    return load_policy(replace(cfg.model, name=str(story_model(cfg))), runtime)


def story_model(cfg: ShoalConfig) -> Path:
    """The folder of the built-in model, which is made first where it is not there."""
    recipe = Recipe()
    display = ProgressDisplay(cfg.monitor.progress, recipe.steps)
    try:
        with display.task("warm start (once; then cached)", recipe.steps) as advance:
            return warm_started_model(recipe, lambda step, steps, loss: advance())
    finally:
        display.close()
