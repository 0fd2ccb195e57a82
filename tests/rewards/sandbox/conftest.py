"""The sandbox, where it can run."""

from __future__ import annotations

import pytest

from shoal.errors import ConfigError
from shoal.rewards.sandbox.core import Sandbox
from shoal.rewards.sandbox.limits import Limits


@pytest.fixture(scope="session")
def bubblewrap() -> Sandbox:
    """Tier bubblewrap as whoever runs the tests."""
    try:
        return Sandbox("bubblewrap")
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture
def limits() -> Limits:
    """Wide, so that an honest program passes on a busy machine."""
    return Limits(seconds=20, cpu_seconds=20)
