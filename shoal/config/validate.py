"""Refusals: values outside their range, and combinations that cannot work."""

from __future__ import annotations

from shoal.config.keys import all_keys, nearest, value_of
from shoal.config.root import ShoalConfig
from shoal.errors import ConfigError


def validate(config: ShoalConfig) -> None:
    """Raises ConfigError, one line, for the first value or combination that cannot work."""
    for key in all_keys().values():
        value = value_of(config, key.name)
        if key.choices and value not in key.choices:
            raise ConfigError(
                f"{key.name}={value}: the nearest choice is {nearest(str(value), key.choices)!r} "
                f"(there are: {', '.join(key.choices)})"
            )
        if key.least is not None and isinstance(value, int | float) and not value >= key.least:
            raise ConfigError(f"{key.name}={value}: the least is {key.least:g}")
