"""From `environment.kind` to the environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shoal.config import ShoalConfig
from shoal.errors import ConfigError
from shoal.imports import import_named
from shoal.rollout.environment import Environment
from shoal.rollout.single_turn import SingleTurnEnvironment
from shoal.rollout.tools import ToolEnvironment

KINDS: dict[str, type[Environment]] = {"single_turn": SingleTurnEnvironment, "tools": ToolEnvironment}
"""Environments by the name that `environment.kind` gives. A new one is a class, and a line here."""


def kind_of(cfg: ShoalConfig) -> str:
    """The kind that `environment.kind` names; without a name `tools` where there are tools, else `single_turn`."""
    return cfg.environment.kind or ("tools" if cfg.environment.tools else "single_turn")


def environment_kind(cfg: ShoalConfig) -> type[Environment]:
    """The class of a configuration's environment: built in, or your own by its import path (package.module:Class).

    Raises:
        ConfigError: there is no such class.
    """
    name = kind_of(cfg)
    if name in KINDS:
        return KINDS[name]
    if ":" not in name:
        raise ConfigError(
            f"environment.kind={name}: there is no such environment (built in: {', '.join(KINDS)}); your own is "
            "package.module:Class"
        )
    kind = import_named(name, "environment.kind")
    if not (isinstance(kind, type) and issubclass(kind, Environment)):
        raise ConfigError(f"environment.kind={name} is no subclass of shoal.rollout.environment.Environment")
    return kind


def open_environment(cfg: ShoalConfig, tokenizer: Any, decode: Callable[[list[int]], str]) -> Environment:
    """The environment of a configuration.

    Raises:
        ConfigError: there is no such class, or it cannot be made from this configuration.
    """
    return environment_kind(cfg)(cfg, tokenizer, decode)
