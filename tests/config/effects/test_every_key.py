"""No key without a test, and no test that leaves its key as it is."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path

from effects.registry import EFFECTS
from shoal.config.keys import all_keys


def registered() -> dict[str, list[object]]:
    """The registry, with every module of this package imported."""
    for file in sorted(Path(__file__).parent.glob("test_*.py")):
        import_module(f"effects.{file.stem}")
    return EFFECTS


def test_every_key_has_a_test_of_its_effect():
    leaves = {key.name for key in all_keys().values() if not key.node}
    assert set(registered()) == leaves


def test_every_registered_test_is_collected_and_makes_its_configurations_by_the_fixture_that_watches():
    for key, tests in registered().items():
        for test in tests:
            assert test.__name__.startswith("test_"), key
            assert getattr(import_module(test.__module__), test.__name__) is test, f"{test.__name__} is hidden"
            assert "settings" in inspect.signature(test).parameters, test.__name__
