"""What cannot work is refused here, before anything starts: ranges, kinds that do not go together, combinations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import copysign, isfinite
from typing import Any

from shoal.config.cluster_keys import check_cluster_keys
from shoal.config.device_keys import check_device_keys
from shoal.config.keys import Key, all_keys, nearest, value_of
from shoal.config.mix import data_sources
from shoal.config.refusals import REFUSALS
from shoal.config.root import ShoalConfig
from shoal.errors import ConfigError

# Beyond these no option means anything, and C code below overflows.
LARGEST_INTEGER, LARGEST_NUMBER, SMALLEST_NUMBER = 2**31 - 1, 3.4e38, 1e-30  # a float32 holds no larger one
SEAMS = ("source", "engine", "learner", "weight_sync")

# Which kinds go together: in each row every kind of one seam works with every kind of the others.
WORKING_KINDS: tuple[Mapping[str, tuple[str, ...]], ...] = (
    {
        "source": ("sync", "async", "replay", "rollout_api"),
        "engine": ("torch",),
        "learner": ("local",),
        "weight_sync": ("in_place",),
    },
    {  # in processes of its own: see PROCESSES in refusals.py
        "source": ("sync", "async", "replay"),
        "engine": ("torch",),
        "learner": ("local",),
        "weight_sync": ("broadcast", "shared"),
    },
    {
        "source": ("sync", "async", "replay"),
        "engine": ("vllm_server", "vllm"),
        "learner": ("local",),
        "weight_sync": ("broadcast", "shared", "lora"),
    },
    {
        "source": ("sync", "async", "replay", "rollout_api"),
        "engine": ("vllm_server",),
        "learner": ("local",),
        "weight_sync": ("restart", "broadcast", "shared", "lora"),
    },
    {
        "source": ("sync", "async", "replay"),
        "engine": ("vllm_server", "torch"),
        "learner": ("deepspeed",),
        "weight_sync": ("broadcast",),
    },
)


def validate(config: ShoalConfig) -> None:
    """Accepts a configuration that can work.

    Raises:
        ConfigError: one line for the first value or combination that cannot, with the nearest one that can.
    """
    for key in all_keys().values():
        _check_value(key, key.name, value_of(config, key.name))
    for name, options in config.reward.options.items():
        if not isinstance(options, Mapping):
            raise ConfigError(
                f"reward.options.{name}: {options!r} is not options by name; write reward.options.{name}.OPTION=VALUE"
            )
    for name, value in config.evaluation.sampling.items():
        _check_evaluation_sampling(name, value)
    for source in data_sources(config.data):
        _check_value(all_keys()["data.task"], f"data.mix.{source.name}.task", source.task)
    check_kinds({seam: value_of(config, f"{seam}.kind") for seam in SEAMS})
    for refusal in REFUSALS:
        if refusal.applies(config):
            raise ConfigError(refusal.line.format(c=config))
    check_device_keys(config)
    check_cluster_keys(config)


def _check_value(key: Key, name: str, value: Any) -> None:
    if key.choices and value not in key.choices:
        raise ConfigError(
            f"{name}={value}: the nearest choice is {nearest(str(value), key.choices)!r} "
            f"(there are: {', '.join(key.choices)})"
        )
    holder = getattr(key.type, "__origin__", None)
    if holder in (dict, list) and name == key.name and isinstance(value, str):
        raise ConfigError(f"{name}: {value!r} is not {key.wanted}")
    if isinstance(value, list | Mapping) and not isinstance(value, str):
        for number in value.values() if isinstance(value, Mapping) else value:
            if isinstance(number, int | float):
                _check_number(name, number, None, None)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        _check_number(name, value, key.least, key.most)


def _check_number(name: str, value: float, least: float | None, most: float | None) -> None:
    if not isfinite(value):
        raise ConfigError(f"{name}={value}: it must be a finite number")
    if least is not None and value < least:
        raise ConfigError(f"{name}={value}: the least is {least:g}")
    if most is None:
        most = LARGEST_INTEGER if isinstance(value, int) else LARGEST_NUMBER
    if value > most or value < -most:
        raise ConfigError(f"{name}={value}: the {'most' if value > 0 else 'least'} is {copysign(most, value):.12g}")
    if 0 < abs(value) < SMALLEST_NUMBER:
        raise ConfigError(f"{name}={value}: it is next to nothing; write 0, or at least {SMALLEST_NUMBER:g}")


def _check_evaluation_sampling(name: str, value: Any) -> None:
    """The entries are those of `sampling`, but in a dict that no type watches over."""
    entry = f"evaluation.sampling.{name}"
    key = all_keys().get(f"sampling.{name}")
    if key is None:
        names = [f"evaluation.{other}" for other in all_keys() if other.startswith("sampling.")]
        raise ConfigError(f"there is no key {entry!r}; the nearest is {nearest(entry, names)!r}")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        int: number and isinstance(value, int),
        float: number,
        list[str]: isinstance(value, list) and all(isinstance(text, str) for text in value),
    }
    if not fits[key.type]:
        raise ConfigError(f"{entry}: {value!r} is not {key.wanted}")
    _check_value(key, entry, value)


def check_kinds(kinds: Mapping[str, str], working: Sequence[Mapping[str, tuple[str, ...]]] = WORKING_KINDS) -> None:
    """Refuses kinds of the four seams that do not go together, with the smallest change that makes them.

    Raises:
        ConfigError: no row of the table holds all four.
    """
    # Of equally many changes, that of the weight sync, which follows from the engine.
    changes = min((_changes(kinds, row) for row in working), key=lambda found: (len(found), *sorted(map(_rank, found))))
    if changes:
        given = " ".join(f"{seam}={kind}" for seam, kind in kinds.items())
        raise ConfigError(f"{given} do not go together; the nearest combination that works has {' '.join(changes)}")


def _rank(change: str) -> int:
    return 0 if change.startswith("weight_sync=") else 1


def _changes(kinds: Mapping[str, str], row: Mapping[str, tuple[str, ...]]) -> list[str]:
    return [f"{seam}={row[seam][0]}" for seam in SEAMS if kinds[seam] not in row[seam]]
