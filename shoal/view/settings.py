"""The configuration of a run for people: its keys, what differs from its preset, what differs between runs."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from shoal.errors import ConfigError
from shoal.run_folder import SAVED, SAVED_HYDRA, SAVED_OVERRIDES
from shoal.view.lines import part_of

LARGEST = 2**20


def settings(run_dir: Path) -> dict[str, Any]:
    """Every key of the saved configuration and its value; empty where there is none that can be read."""
    return flattened(_read(run_dir, SAVED))


def overrides(run_dir: Path) -> list[str]:
    """What was given on the command line."""
    found = _read(run_dir, SAVED_OVERRIDES)
    return [str(one) for one in found] if isinstance(found, list) else []


def against_preset(run_dir: Path) -> dict[str, Any]:
    """The preset's name, and the keys that differ from it with both values.

    Where the preset is not one of Shoal's own, or is of another release, `rows` holds the overrides alone.
    """
    mine = settings(run_dir)
    saved = _read(run_dir, SAVED_HYDRA)
    job = saved.get("hydra", {}).get("job", {}) if isinstance(saved, dict) else {}
    name = str(job.get("config_name") or "") if isinstance(job, dict) else ""
    theirs = dict(_preset(name)) if name else {}
    if not theirs:
        given = [[*text.partition("=")[::2], None] for text in overrides(run_dir)]
        return {"preset": name or None, "rows": given, "complete": False}
    rows: list[list[Any]] = [
        [key, mine.get(key), theirs.get(key)]
        for key in sorted({*mine, *theirs})
        if mine.get(key) != theirs.get(key) and key != "resume"
    ]
    return {"preset": name, "rows": rows, "complete": True}


def differing(runs: dict[str, Path]) -> list[list[Any]]:
    """The keys whose values are not the same in all runs: the key, then one value a run."""
    found = [settings(path) for path in runs.values()]
    keys = sorted({key for one in found for key in one} - {"run.name", "run.root", "resume"})
    rows = [[key, *(one.get(key) for one in found)] for key in keys]
    return [row for row in rows if any(value != row[1] for value in row[2:])]


def flattened(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    if not isinstance(value, dict) or (prefix and not value):
        return {prefix: value} if prefix else {}
    found: dict[str, Any] = {}
    for key, one in value.items():
        found |= flattened(one, f"{prefix}.{key}" if prefix else str(key))
    return found


@lru_cache(maxsize=16)
def _preset(name: str) -> tuple[tuple[str, Any], ...]:
    from dataclasses import asdict  # noqa: PLC0415 only needed with the line below

    from shoal.config import load_config  # noqa: PLC0415 Hydra takes a third of a second, which other pages need not wait for

    try:
        return tuple(flattened(asdict(load_config(name))).items())
    except ConfigError:
        return ()


def _read(run_dir: Path, name: Path) -> Any:
    path = part_of(run_dir, name)
    try:
        if path.stat().st_size > LARGEST:
            return {}
        return yaml.safe_load(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        return {}
