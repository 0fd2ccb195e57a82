"""Command-line overrides: read, checked and completed before Hydra sees them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException

from shoal.config.keys import all_keys, holder_of, unknown_key
from shoal.errors import ConfigError

GROUPS = ("algorithm", "source", "engine", "learner", "weight_sync", "cluster")


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Hydra's overrides (key=value, group=choice, key=a,b in sweeps).

    A value with letters beyond ASCII, which Hydra's grammar has not, is quoted: run.name=loc-é.

    Raises:
        ConfigError: one cannot be read, or is no UTF-8.
    """
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        if not text.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ConfigError(f"{text!a} is no UTF-8 text: write it in a terminal whose encoding is UTF-8")
        try:
            parsed.extend(parser.parse_overrides([_quoted(text)]))
        except OverrideParseException as error:
            raise ConfigError(
                f"cannot read the override {text!r}: write key=value, and quote a value with spaces or special "
                f"characters, as in 'data.system_prompt=\"Think, then answer.\"'"
            ) from error
    return parsed


def _quoted(text: str) -> str:
    key, equals, value = text.partition("=")
    plain = re.fullmatch(r"[\w./:%@+-]+", value) is not None
    return f'{key}{equals}"{value}"' if plain and not value.isascii() else text


def check_overrides(overrides: Sequence[str], *, sweep: bool = False) -> list[str]:
    """Checks the keys and completes what has a short form; returns overrides for Hydra.

    `model=NAME` is short for `model.name=NAME`; a dict-typed key and its entries need no plus sign.

    Raises:
        ConfigError: an override cannot be read, its key does not exist or holds other keys, or it lists
            values to sweep over outside a sweep.
    """
    return [_complete(override, sweep) for override in parse_overrides(overrides)]


def _complete(override: Override, sweep: bool) -> str:
    text = str(override.input_line)
    name = override.key_or_group
    if override.is_sweep_override() and not sweep:
        raise ConfigError(
            f"{text!r} lists several values: add --multirun to sweep over them, write [a,b] for a list, or quote one "
            f"text with a comma twice, as in 'data.system_prompt=\"Think, then answer.\"'"
        )
    if name.startswith("hydra"):
        return _hydras_own(name, text, sweep)
    if name in GROUPS:
        return text
    if name == "model" and not override.is_delete() and isinstance(override.value(), str):
        return text.replace("model=", "model.name=", 1)
    if name == "environment" and not override.is_delete() and isinstance(override.value(), str):
        return text.replace("environment=", "environment.kind=", 1)
    key = all_keys().get(name)
    if key is None:
        holder = holder_of(name)
        if holder is None:
            raise ConfigError(unknown_key(name))
        return text if override.is_delete() else "++" + text.lstrip("+")
    if getattr(key.type, "__origin__", None) is dict and not override.is_delete():
        return "++" + text.lstrip("+")
    if key.node:
        inner = [other for other in all_keys() if other.startswith(name + ".")]
        raise ConfigError(f"{text!r}: {name} holds other keys; set one of them, such as {inner[0]}")
    if override.is_delete():
        raise ConfigError(f"{text!r}: keys cannot be taken away; set {name} to another value")
    if key.type is bool and not override.is_sweep_override() and not isinstance(override.value(), bool):
        raise ConfigError(f"{name}: {override.value()!r} is not {key.wanted}")
    return text


def _hydras_own(name: str, text: str, sweep: bool) -> str:
    if name in ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir"):
        raise ConfigError(f"{text!r}: run.root and run.name say where runs are written")
    if not sweep:
        raise ConfigError(f"{text!r} has an effect in sweeps only: add --multirun")
    return text


def overridden(overrides: Sequence[str]) -> dict[str, Any]:
    """The keys and groups that overrides set, with their values (of a sweep: an object of Hydra's)."""
    return {
        override.key_or_group: override.value() for override in parse_overrides(check_overrides(overrides, sweep=True))
    }


def split_resume(overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """Takes `resume=WHERE` out of the overrides: (WHERE or None, the others)."""
    where, others = None, []
    for text, override in zip(overrides, parse_overrides(overrides), strict=True):
        if override.key_or_group == "resume":
            value = override.value()
            where = None if value is None else str(value)
        else:
            others.append(text)
    return where, others
