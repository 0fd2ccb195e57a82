"""`shoal env`: opens an environment by name and serves it, writes groups for people, or evaluates a model."""

from __future__ import annotations

import asyncio
import os
from logging import getLogger
from pathlib import Path
from typing import Any

from shoal.config import ShoalConfig
from shoal.engines.base import SamplingParams
from shoal.environments.base import EVALUATION_EPOCH, Environment, Item
from shoal.environments.dataset import DatasetEnvironment
from shoal.environments.tools import ToolEnvironment
from shoal.errors import ConfigError
from shoal.imports import import_named
from shoal.learners.model import load_tokenizer
from shoal.rollout_api.client import ApiClient
from shoal.rollout_api.engine_client import EngineClient
from shoal.rollout_api.environment_server import Counts, EnvironmentServer
from shoal.rollout_api.group_files import write_groups
from shoal.rollout_api.protocol import ENVIRONMENT_TOKEN
from shoal.tasks.story import story_tokenizer
from shoal.training.evaluate import evaluation_metrics

logger = getLogger(__name__)


def open_environment(name: str, cfg: ShoalConfig) -> Environment:
    """The environment of a configuration: of its data set, with tools where it names some; or a class of your own by
    its import path (package.module:Class).

    Raises:
        ConfigError: there is no such class.
    """
    kind = import_named(name, "environment") if ":" in name else None
    if kind is not None and not (isinstance(kind, type) and issubclass(kind, Environment)):
        raise ConfigError(f"environment {name} is no subclass of shoal.environments.base.Environment")
    tokenizer: Any = story_tokenizer() if cfg.model.name == "story" else load_tokenizer(cfg.model)
    if kind is None:
        kind = ToolEnvironment if cfg.environment.tools else DatasetEnvironment
    return kind(cfg, tokenizer)


def serve(name: str, cfg: ShoalConfig, api: str, engine: str) -> Counts:
    """Serves an environment until its trainer needs no more groups.

    Raises:
        RolloutApiError, EngineError: a server was not there before environment.timeout.
        TrainingError: too many rollouts or rewards failed.
    """
    environment = open_environment(name, cfg)
    client = ApiClient(api, token=os.environ.get(ENVIRONMENT_TOKEN), timeout=cfg.environment.timeout)

    async def run() -> Counts:
        model = EngineClient(engine, cfg.environment.timeout)
        try:
            return await EnvironmentServer(environment, name.partition(":")[2] or name, client, model).serve()
        finally:
            await model.close()
            client.close()

    return asyncio.run(run())


def process(name: str, cfg: ShoalConfig, engine: str, groups: int, folder: Path) -> Path:
    """Rolls out and scores `groups` groups and writes them to `folder`: groups.jsonl and groups.html, which is given.

    Raises:
        EngineError: the engine was not there before environment.timeout.
    """
    environment = open_environment(name, cfg)

    async def run() -> Path:
        model = EngineClient(engine, cfg.environment.timeout)
        try:
            await asyncio.to_thread(environment.setup)
            items = [environment.next_item() for _ in range(groups)]
            size, sampling = environment.group_size, environment.sampling
            made = await asyncio.gather(*(environment.group(item, model, size, sampling) for item in items))
            await asyncio.to_thread(environment.score, made)
            return write_groups(folder, made, sampling, environment.tokenizer, title=name)
        finally:
            environment.close()
            await model.close()

    return asyncio.run(run())


def evaluate(name: str, cfg: ShoalConfig, engine: str) -> dict[str, float]:
    """Accuracy and the like on the held-out prompts, as `shoal eval` gives them, of whatever the engine holds.

    Raises:
        EngineError: the engine was not there before environment.timeout.
        ConfigError: the environment has no held-out prompts.
    """
    environment = open_environment(name, cfg)
    values = {**vars(cfg.sampling), **cfg.evaluation.sampling}
    sampling = SamplingParams(**{**values, "stop": tuple(values["stop"])})

    async def run() -> dict[str, float]:
        model = EngineClient(engine, cfg.environment.timeout)
        try:
            await asyncio.to_thread(environment.setup)
            items = [Item(prompt, EVALUATION_EPOCH) for prompt in environment.held_out]
            if not items:
                raise ConfigError(f"environment {name} has no held-out prompts to evaluate on")
            size = cfg.evaluation.samples
            groups = await asyncio.gather(*(environment.group(item, model, size, sampling) for item in items))
            await asyncio.to_thread(environment.score, groups)
            return evaluation_metrics(groups, size)
        finally:
            environment.close()
            await model.close()

    return asyncio.run(run())
