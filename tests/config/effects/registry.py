"""Which test shows the effect of which key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Test = Callable[..., Any]

EFFECTS: dict[str, list[Test]] = {}
"""Key to the tests that change it."""


def effect(*keys: str) -> Callable[[Test], Test]:
    """Registers a test for the keys that it changes, by the fixture `settings`. See conftest for what is asked of it:
    two values of each key, and failure where a key is ignored."""

    def register(test: Test) -> Test:
        for key in keys:
            EFFECTS.setdefault(key, []).append(test)
        return test

    return register


def keys_of(test: Test) -> list[str]:
    """The keys that a test is registered for."""
    return [key for key, tests in EFFECTS.items() if test in tests]
