"""When an engine's log-probs say that it has not got the new weights."""

from __future__ import annotations

import pytest

from shoal.weight_sync.check import stood_still

BEFORE = [[-1.0, -0.5], [-2.0]]


def moved(by: float) -> list[list[float]]:
    return [[one + by for one in row] for row in BEFORE]


@pytest.mark.parametrize(
    ("learner", "engine", "rounds", "still"),
    [
        (0.01, 0.0, False, True),
        (0.01, 0.001, False, True),  # it has a part of the new weights
        (0.01, 0.009, False, False),
        (1e-8, 0.0, False, False),  # nothing has moved
        # A learner that rounds float32 weights can move by rounding alone; an engine in float32 moves by the step.
        (0.05, 0.002, True, False),
        (0.05, 0.0, True, True),
        (0.05, 1e-7, True, True),  # the order of a sum
    ],
)
def test_weights_are_stale_where_the_learner_moved_and_the_engine_did_not(
    learner: float, engine: float, rounds: bool, still: bool
):
    assert stood_still(BEFORE, moved(learner), BEFORE, moved(engine), rounds=rounds) == still


def test_an_engine_that_was_not_measured_before_says_nothing():
    assert not stood_still(BEFORE, moved(0.1), None, BEFORE, rounds=False)
