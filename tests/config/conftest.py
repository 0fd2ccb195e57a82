"""What the configuration's tests share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shoal.config import load_config
from shoal.errors import ConfigError


@pytest.fixture
def refusal_of() -> Callable[..., str]:
    """The line that a configuration is refused with."""

    def refusal(*overrides: str, name: str = "story", config_dir: object = None) -> str:
        with pytest.raises(ConfigError) as caught:
            load_config(name, overrides, config_dir)
        line = str(caught.value)
        assert line == line.strip() and "\n" not in line
        for foreign in ("full_key", "object_type", "hydra.cc", "searchpath", "Config search path"):
            assert foreign not in line
        return line

    return refusal
