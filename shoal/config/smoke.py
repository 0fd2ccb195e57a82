"""The smoke test: any configuration made small enough to run from end to end in moments."""

from __future__ import annotations

from collections.abc import Collection
from copy import deepcopy
from typing import Any

from shoal.config.keys import set_value, value_of
from shoal.config.root import ShoalConfig
from shoal.config.validate import validate

MAX_NEW_TOKENS = 64
MAX_PROMPT_TOKENS = 256
EVALUATION_PROMPTS = 8


def shrink(config: ShoalConfig, steps: int = 2, keep: Collection[str] = ()) -> ShoalConfig:
    """A copy that runs `steps` small steps which change weights, without trackers. Keys in `keep` stay as they are.

    Warm-up is left out, which is longer than the run, and equal rewards, likely in so few completions,
    are trained on with made-up advantages. No judge is asked: its verdicts are made up.

    Raises:
        ConfigError: what `keep` holds on to does not go with the rest.
    """
    small = deepcopy(config)
    for name, value in _changes(config, steps).items():
        if name not in keep:
            set_value(small, name, value)
    new_tokens = small.sampling.max_new_tokens
    small.algorithm.overlong.buffer = min(small.algorithm.overlong.buffer, new_tokens)
    if "max_new_tokens" in small.evaluation.sampling:
        small.evaluation.sampling["max_new_tokens"] = min(small.evaluation.sampling["max_new_tokens"], new_tokens)
    validate(small)
    return small


def _changes(config: ShoalConfig, steps: int) -> dict[str, Any]:
    most = {
        "run.prompts_per_step": 2,
        "run.group_size": 2,
        "sampling.max_new_tokens": MAX_NEW_TOKENS,
        "data.max_prompt_tokens": MAX_PROMPT_TOKENS,
        "algorithm.num_minibatches": 2,
        "evaluation.samples": 2,
    }
    return {
        **{name: min(value_of(config, name), limit) for name, limit in most.items()},
        "run.steps": steps,
        "run.episodes": 0,
        "run.made_up_advantages": True,
        "algorithm.zero_variance": "keep",
        "optimizer.warmup_steps": 0,
        "optimizer.warmup_ratio": 0.0,
        # 0 prompts means all of them.
        "evaluation.prompts": min(config.evaluation.prompts or EVALUATION_PROMPTS, EVALUATION_PROMPTS),
        "checkpoint.every": steps if config.checkpoint.every else 0,
        "reward.judge.made_up": True,
        "reward.rubric.adaptive": False,
        "reward.rubric.apply_to": "current",
        "monitor.tensorboard": False,
        "monitor.wandb.enabled": False,
    }
