"""`shoal env`: serves an environment to a trainer, writes groups for people, or evaluates a model."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from logging import getLogger
from pathlib import Path
from typing import Any, TypeVar

from shoal.config import ShoalConfig
from shoal.engines.stopping import text_decoder
from shoal.errors import ConfigError
from shoal.rewards.scorer import Scorer
from shoal.rollout.environment import EVALUATION_EPOCH, Environment, Item
from shoal.rollout.open import open_environment
from shoal.rollout.rollouts import Rollouts
from shoal.rollout.sampling import sampling_params
from shoal.rollout.task import environment_task, with_own_reward
from shoal.rollout_api.client import ApiClient
from shoal.rollout_api.environment.engine_client import EngineClient
from shoal.rollout_api.environment.group_files import write_groups
from shoal.rollout_api.environment.server import Counts, EnvironmentServer
from shoal.rollout_api.protocol import ENVIRONMENT_TOKEN
from shoal.tasks.base import Task
from shoal.tasks.stream import PromptStream
from shoal.training.evaluate import evaluation_metrics
from shoal.training.policy import model_info
from shoal.types import Group

logger = getLogger(__name__)

T = TypeVar("T")


@dataclass
class OpenEnvironment:
    """An environment with its prompts and its judge, without an engine."""

    cfg: ShoalConfig
    environment: Environment
    task: Task
    scorer: Scorer

    def items(self, count: int) -> list[Item]:
        """The first items of the training data, in the order of a run with this seed."""
        stream = PromptStream(self.task.train, seed=self.cfg.run.seed, shuffle=self.cfg.data.shuffle)
        return [Item(prompt, epoch) for prompt, epoch in stream.next(count)]

    def close(self) -> None:
        self.scorer.close()
        self.environment.close()


def open_by_name(name: str, cfg: ShoalConfig) -> OpenEnvironment:
    """The environment of a configuration; `name` is a preset's, or a class of your own (package.module:Class).

    Raises:
        ConfigError, DataError: there is no such class, or its prompts cannot be had.
    """
    if ":" in name:
        cfg = replace(cfg, environment=replace(cfg.environment, kind=name))
    info = model_info(cfg)
    environment = open_environment(cfg, info.tokenizer, text_decoder(info.tokenizer, info.end_ids))
    rewards = with_own_reward(environment, {})
    task = environment_task(cfg, environment, rewards)
    return OpenEnvironment(cfg, environment, task, Scorer(cfg.reward, task.verifiers, rewards))


def serve(name: str, cfg: ShoalConfig, api: str, engine: str) -> Counts:
    """Serves an environment until its trainer needs no more groups.

    Raises:
        RolloutApiError, EngineError: a server was not there before environment.timeout.
        TrainingError: too many rollouts or rewards failed.
    """
    opened = open_by_name(name, cfg)
    client = ApiClient(api, token=os.environ.get(ENVIRONMENT_TOKEN), timeout=cfg.environment.timeout)
    shown = name.partition(":")[2] or name

    async def work(rollouts: Rollouts) -> Counts:
        stream = PromptStream(opened.task.train, seed=cfg.run.seed, shuffle=cfg.data.shuffle)
        return await EnvironmentServer(rollouts, opened.scorer, stream, shown, client).serve()

    try:
        return with_engine(opened, engine, work)
    finally:
        client.close()


def process(name: str, cfg: ShoalConfig, engine: str, groups: int, folder: Path) -> Path:
    """Rolls out and scores `groups` groups and writes them to `folder`, which is given: groups.jsonl, and samples.

    Raises:
        EngineError: the engine was not there before environment.timeout.
    """
    opened = open_by_name(name, cfg)
    sampling = sampling_params(cfg)
    items = opened.items(groups)
    made = with_engine(opened, engine, lambda rollouts: scored(rollouts, opened, items, cfg.run.group_size))
    return write_groups(folder, made, sampling, opened.environment.tokenizer.decode)


def evaluate(name: str, cfg: ShoalConfig, engine: str) -> dict[str, float]:
    """Accuracy and the like on the held-out prompts, as `shoal eval` gives them, of whatever the engine holds.

    Raises:
        EngineError: the engine was not there before environment.timeout.
        ConfigError: the environment has no held-out prompts.
    """
    opened = open_by_name(name, cfg)
    prompts = opened.task.evaluation[: cfg.evaluation.prompts or None]
    items = [Item(prompt, EVALUATION_EPOCH) for prompt in prompts]
    if not items:
        raise ConfigError(f"environment {name} has no held-out prompts to evaluate on")
    size, changed = cfg.evaluation.samples, cfg.evaluation.sampling
    groups = with_engine(opened, engine, lambda rollouts: scored(rollouts, opened, items, size, changed))
    return evaluation_metrics(groups, size)


def with_engine(opened: OpenEnvironment, engine: str, work: Callable[[Rollouts], Awaitable[T]]) -> T:
    """Runs `work` with rollouts on the engine at this address, and ends everything."""

    async def run() -> T:
        model = EngineClient(engine, opened.cfg.environment.timeout)
        try:
            return await work(Rollouts(opened.environment, model))
        finally:
            await model.close()

    try:
        return asyncio.run(run())
    finally:
        opened.close()


async def scored(
    rollouts: Rollouts, opened: OpenEnvironment, items: list[Item], size: int, changed: dict[str, Any] | None = None
) -> list[Group]:
    """One scored group of each item. `changed` are other sampling parameters."""
    sampling = sampling_params(opened.cfg, changed)
    groups = await asyncio.gather(*(rollouts.group(item, size=size, sampling=sampling) for item in items))
    await asyncio.to_thread(lambda: opened.scorer.finish(groups).check())
    return list(groups)
