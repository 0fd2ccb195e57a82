"""Slots and the take rule over simulated schedules: what holds in all of them, and what wrong rules would do."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.rollout.simulation import End, Fate, Flow, Lengths, Outcome, StuckError, TooStaleError, simulate
from shoal.rollout.slots import Slots
from shoal.rollout.take_rule import take


@dataclass(frozen=True)
class Schedule:
    """Engines and a learner that needs one second a step; `burst` groups in a row are slow together."""

    seed: int
    flow: Flow
    tail: float = 20.0
    slow_share: float = 0.05
    burst: int = 1
    filtered: float = 0.0
    failed: float = 0.0
    room: int = 64
    publish_seconds: float = 0.0
    deaths: tuple[float, ...] = ()
    steps: int = 25

    def fate(self, number: int) -> Fate:
        slow = Random(f"{self.seed} {number // self.burst}").random() < self.slow_share
        random = Random(f"{self.seed} {number}")
        seconds = random.lognormvariate(0, 0.6) * (self.tail if slow else 1)
        draw = random.random()
        end = End.FILTERED if draw < self.filtered else End.FAILED if draw > 1 - self.failed else End.USED
        return Fate(seconds, end, slow)

    def run(self, **planted: Any) -> Outcome:
        return simulate(
            self.flow,
            self.fate,
            steps=self.steps,
            step_seconds=1.0,
            publish_seconds=self.publish_seconds,
            room=self.room,
            deaths=self.deaths,
            restart_seconds=3.0,
            **planted,
        )


FLOWS = st.builds(
    lambda groups, lead, more, every, order: Flow(groups, lead + more, lead, min(every, lead + 1), order),
    st.integers(1, 8),
    st.integers(0, 4),
    st.integers(0, 3),
    st.integers(1, 5),
    st.sampled_from(["oldest", "first_come"]),
)
SCHEDULES = st.builds(
    Schedule,
    seed=st.integers(0, 2**32),
    flow=FLOWS,
    tail=st.sampled_from([1.0, 10.0, 50.0]),
    slow_share=st.sampled_from([0.02, 0.3]),
    burst=st.sampled_from([1, 7]),
    filtered=st.sampled_from([0.0, 0.4]),
    failed=st.sampled_from([0.0, 0.2]),
    room=st.integers(1, 64),
    publish_seconds=st.sampled_from([0.0, 0.5]),
    deaths=st.lists(st.floats(0, 60), max_size=4).map(tuple),
)


def holds(schedule: Schedule) -> None:
    """The promises: the run ends, no group is older than the bound, each is trained on once and none is left behind,
    so that what is trained on is a sample of what was started."""
    flow, outcome = schedule.flow, schedule.run()
    assert outcome.steps == schedule.steps
    assert max(outcome.ages) <= flow.max_staleness
    assert len(outcome.trained) == len(set(outcome.trained)) == schedule.steps * flow.prompts_per_step
    # Groups start in order, and a slot is free only where something ended: those that are left are at most all slots.
    used = [number for number in range(outcome.started) if schedule.fate(number).end is End.USED]
    left = set(used) - set(outcome.trained)
    assert len(left) <= (flow.lead + 1) * flow.prompts_per_step
    slow = sum(schedule.fate(number).slow for number in used)
    assert outcome.slow_trained == slow - sum(schedule.fate(number).slow for number in left)


@settings(max_examples=100, deadline=None)
@given(SCHEDULES)
def test_no_schedule_breaks_the_bound_or_waits_for_ever(schedule):
    holds(schedule)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@given(SCHEDULES)
def test_nor_does_one_of_thousands(schedule):
    holds(schedule)


class FreedAtTraining(Slots):
    """A mutant: does not wait for the publication."""

    def trained(self, groups, version):
        super().trained(groups, version)
        self.published(version)


def one_version_late(ready, outstanding, *, version, **rest):
    """A mutant: off by one in k."""
    return take(ready, outstanding, version=version - 1, **rest)


def ready_first(ready, outstanding, **rest):
    """A mutant: does not look at who is outstanding."""
    return take(ready, [], **rest)


def outcomes(flow: Flow, **planted: Any) -> set[str]:
    found = set()
    for seed in range(40):
        try:
            Schedule(seed, flow).run(**planted)
            found.add("ends")
        except (StuckError, TooStaleError) as error:
            found.add(type(error).__name__)
    return found


def test_slots_that_are_freed_at_training_let_runs_wait_for_ever():
    flow = Flow(3, 1, 1, every=2)
    assert outcomes(flow) == {"ends"}
    assert "StuckError" in outcomes(flow, slots_class=FreedAtTraining)


def test_a_rule_that_is_off_by_one_breaks_the_bound():
    flow = Flow(3, 1, 1)
    assert outcomes(flow) == {"ends"}
    assert "TooStaleError" in outcomes(flow, rule=one_version_late)
    assert "TooStaleError" in outcomes(flow, rule=ready_first)


def test_weights_that_come_more_seldom_than_the_lead_allows_are_waited_for_for_ever():
    assert outcomes(Flow(3, 3, 1, every=3)) == {"StuckError"}


def test_without_staleness_times_add_up_as_in_sync():
    # Two groups a step of 3 s and 5 s, a learner of 2 s: 7 s a step, of which the engines idle 2 and the learner 5.
    outcome = simulate(Flow(2, 0, 0), lambda number: Fate(3.0 + 2.0 * (number % 2)), steps=10, step_seconds=2.0)
    assert (outcome.seconds, outcome.learner_waited, outcome.engines_idle) == (70.0, 50.0, 20.0)
    assert set(outcome.ages) == {0}


def test_engines_with_room_for_one_group_take_them_one_after_another():
    outcome = simulate(Flow(2, 0, 0), lambda number: Fate(3.0), steps=4, step_seconds=1.0, room=1)
    assert outcome.seconds == 4 * (3 + 3 + 1)


def test_what_an_engine_held_when_it_died_begins_anew():
    # It dies at 2 s, is back at 12 s, and needs 3 s from the start.
    outcome = simulate(
        Flow(1, 0, 0), lambda number: Fate(3.0), steps=1, step_seconds=1.0, deaths=(2.0,), restart_seconds=10.0
    )
    assert outcome.seconds == 16.0


def speed(bound: int, lead: int) -> tuple[float, float]:
    """Times faster than sync, and the mean age, with a tail: one completion in fifty takes ten times as long."""

    def run(flow: Flow) -> Outcome:
        random, lengths = Random(1), Lengths(10.0, size=8)
        return simulate(flow, lambda number: lengths.fate(random), steps=300, step_seconds=40.0)

    ahead = run(Flow(8, bound, lead))
    assert max(ahead.ages) <= bound
    return run(Flow(8, 0, 0)).seconds / ahead.seconds, ahead.mean_age


def test_the_bound_buys_speed_on_tails_and_the_lead_sets_the_mean_age():
    small, _ = speed(2, 2)
    wide, age = speed(4, 1)
    _, one_knob = speed(4, 4)
    assert small > 2.0
    assert wide > 2.4
    assert age == pytest.approx(1.0, abs=0.05)
    assert one_knob == pytest.approx(4.0, abs=0.1)
