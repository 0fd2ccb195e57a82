"""The sentence that names the bottleneck of asynchronous training."""

from __future__ import annotations

from random import Random
from statistics import median_high

import pytest

from shoal.training import async_metrics
from shoal.training.async_metrics import WINDOW, Tally


def after(*steps: tuple[float, float, str]) -> tuple[str, str]:
    """What is named after steps of (idle share of the learner, of the engine, what the learner waited for)."""
    tally = Tally()
    tally.recent = list(steps)
    return tally.bottleneck()


@pytest.mark.parametrize(
    ("step", "who", "key"),
    [
        ((0.0, 0.5, "groups"), "learner", "engine idles 50%"),
        ((0.5, 0.0, "groups"), "rollouts", "raise engine.processes"),
        ((0.5, 0.0, "due"), "slow groups", "raise source.max_staleness"),
    ],
)
def test_the_side_that_the_other_waits_for_is_named_with_the_key_that_moves_it(
    step: tuple[float, float, str], who: str, key: str
):
    found, sentence = after(*[step] * WINDOW)
    assert found == who
    assert key in sentence


def test_nothing_is_named_where_both_sides_work_or_too_few_steps_are_done():
    assert after(*[(0.0, 0.01, "groups")] * WINDOW) == ("", "")
    assert after(*[(0.5, 0.0, "groups")] * (WINDOW - 1)) == ("", "")


def test_a_group_is_slow_beside_the_latest_ones(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(async_metrics, "LATEST", 20)
    random, tally, durations = Random(0), Tally(), []
    for number in range(200):
        durations.append(random.choice([1.0, 1.5, 3.0, 9.0]) * (1 if number < 100 else 10))
        assert tally.took(durations[-1]) == (durations[-1] > 2 * median_high(durations[-20:]))
