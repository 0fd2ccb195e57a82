"""The limits of the sandbox's tests."""

from __future__ import annotations

import pytest

from shoal.rewards.sandbox.limits import Limits


@pytest.fixture
def limits() -> Limits:
    """Wide, so that an honest program passes on a busy machine."""
    return Limits(seconds=20, cpu_seconds=20)
