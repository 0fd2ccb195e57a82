"""The task of a run: the environment's own prompts where it has some, else the data set's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from shoal.config import ShoalConfig
from shoal.errors import ConfigError
from shoal.rewards.base import Verifier
from shoal.rollout.environment import Environment, own_prompts
from shoal.tasks.base import Task
from shoal.tasks.dataset import build_task

OWN_REWARD = "environment"
"""The name of an environment's own reward among the reward's parts."""


def with_own_reward(environment: Environment, rewards: Mapping[str, Verifier]) -> dict[str, Verifier]:
    """The functions that judge beside configured verifiers: the caller's, and the environment's where it has one."""
    own = {} if environment.reward is None else {OWN_REWARD: environment.reward}
    return {**own, **rewards}


def environment_task(cfg: ShoalConfig, environment: Environment, rewards: Mapping[str, Verifier]) -> Task:
    """What is trained and evaluated on, tokenised as the environment shows it to the model.

    Raises:
        ConfigError: the environment has prompts of its own, and nothing that judges what is made of them.
        DataError: the data cannot be read, or nothing is left of it.
    """
    own = own_prompts(environment)
    if own is None:
        shown = replace(cfg, model=replace(cfg.model, chat_template_kwargs=environment.template_kwargs))
        return build_task(shown, environment.tokenizer, own_verifiers=rewards)
    train, evaluation = own
    named = all(prompt.verifiers for prompt in train)
    if not (rewards or cfg.reward.verifiers or named):
        raise ConfigError(
            f"{type(environment).__name__} has prompts of its own and nothing judges their completions: give it a "
            "method reward(self, submission), or set reward.verifiers"
        )
    return Task(train=train, evaluation=evaluation, verifiers={})
