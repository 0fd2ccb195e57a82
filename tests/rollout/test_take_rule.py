"""The rule of asynchronous training, first by hand, then over simulated schedules, and what wrong rules would do."""

import heapq
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.rollout.slots import Slots
from shoal.rollout.take_rule import take, waited_for

BY_HAND = {
    "too few": ([3], [], None),
    "all of one version": ([3, 3], [3], [0, 1]),
    "the oldest first": ([3, 2, 3, 2], [3, 3], [1, 3]),
    "a younger one passes what is not due": ([3, 3], [2, 2], [0, 1]),
    "a due one is waited for": ([3, 3], [1], None),
    "as many may be left as the next step takes": ([3, 3], [2, 2], [0, 1]),
    "one more than that may not": ([3, 3], [2, 2, 2], None),
    "one more than that is taken where it is ready": ([3, 3, 2], [2, 2], [0, 2]),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_by_hand_with_two_groups_a_step_and_a_bound_of_two(case):
    ready, outstanding, expected = BY_HAND[case]
    assert take(ready, outstanding, version=3, prompts_per_step=2, max_staleness=2) == expected


def test_first_come_takes_what_is_due_and_then_the_first_to_finish():
    ready = [3, 3, 2, 1]
    assert take(ready, [], version=3, prompts_per_step=2, max_staleness=2, order="oldest") == [2, 3]
    assert take(ready, [], version=3, prompts_per_step=2, max_staleness=2, order="first_come") == [0, 3]


def test_without_staleness_the_whole_step_is_waited_for():
    assert take([5, 5], [5], version=5, prompts_per_step=2, max_staleness=0) is None
    assert take([5, 5, 5], [], version=5, prompts_per_step=3, max_staleness=0) == [0, 1, 2]


def test_who_is_waited_for_is_named_the_oldest_first_and_no_more_than_have_to_finish():
    bound = {"version": 3, "prompts_per_step": 2, "max_staleness": 2}
    assert waited_for([3, 3], [3, 1, 2], **bound) == [1]
    assert waited_for([3, 3], [2, 2, 2], **bound) == [0]
    assert waited_for([3], [2, 2], **bound) == []
    assert waited_for([3, 3], [2, 2], **bound) == []


@given(
    st.lists(st.integers(0, 6), max_size=12),
    st.lists(st.integers(0, 6), max_size=12),
    st.integers(1, 4),
    st.integers(0, 4),
)
def test_a_step_is_taken_exactly_where_some_choice_leaves_every_deadline_possible(ready, outstanding, groups, bound):
    version = 6
    rule = {"version": version, "prompts_per_step": groups, "max_staleness": bound}

    def possible(left):
        return all(sum(one + bound <= version + k for one in left) <= k * groups for k in range(bound + 1))

    chosen = {order: take(ready, outstanding, order=order, **rule) for order in ("oldest", "first_come")}
    for places in chosen.values():
        if places is not None:
            assert len(set(places)) == groups
            assert possible(outstanding + [one for place, one in enumerate(ready) if place not in places])
    # The oldest groups are the best choice that there is: where they do not do, none does.
    oldest = sorted(ready)[:groups]
    enough = len(ready) >= groups
    assert (chosen["oldest"] is not None) == (enough and possible(outstanding + sorted(ready)[groups:]))
    assert (chosen["first_come"] is None) == (chosen["oldest"] is None)
    if chosen["oldest"] is not None:
        assert sorted(ready[place] for place in chosen["oldest"]) == oldest
    elif enough and possible(sorted(ready)[groups:]):
        assert waited_for(ready, outstanding, **rule)


class DeadlockError(Exception):
    """Nobody can move any more."""


class TooStaleError(Exception):
    """A group was trained on that is older than the bound."""


@dataclass
class Schedule:
    """A run in simulated time: a learner that needs one unit a step, groups that need `length(random)`."""

    seed: int
    groups: int = 3
    bound: int = 2
    lead: int = 1
    every: int = 1
    tail: float = 20.0
    filtered: float = 0.0
    steps: int = 40
    at_once: int = 64  # groups that the engines have room for
    order: str = "oldest"
    ages: list[int] = field(default_factory=list)

    def run(self, slots_class=Slots, rule=take):
        random, slots = Random(self.seed), slots_class(self.groups, self.lead)
        now, number, version, published, busy_until = 0.0, 0, 0, 0, 0.0
        under_way, waiting, ready, started, trained = [], [], [], {}, []
        while version < self.steps:
            while slots.free:
                slots.start()
                started[number] = published
                waiting.append(number)
                number += 1
            while waiting and len(under_way) < self.at_once:
                length = random.lognormvariate(0, 0.6) * (self.tail if random.random() < 0.05 else 1)
                heapq.heappush(under_way, (now + length, waiting.pop(0)))
            chosen = None
            if now >= busy_until:
                outstanding = [started[one] for _, one in under_way] + [started[one] for one in waiting]
                chosen = rule(
                    [started[one] for one in ready],
                    outstanding,
                    version=version,
                    prompts_per_step=self.groups,
                    max_staleness=self.bound,
                    order=self.order,
                )
            if chosen is not None:
                batch = [ready[place] for place in chosen]
                ready = [one for one in ready if one not in batch]
                for one in batch:
                    self.ages.append(version - started[one])
                    if self.ages[-1] > self.bound:
                        raise TooStaleError(one)
                trained += batch
                version += 1
                slots.trained(len(batch), version)
                if version % self.every == 0:
                    published = version
                    slots.published(version)
                busy_until = now + 1.0
                continue
            if now < busy_until and (not under_way or busy_until <= under_way[0][0]):
                now = busy_until
            elif under_way:
                now, one = heapq.heappop(under_way)
                if random.random() < self.filtered:
                    slots.give_up()
                else:
                    ready.append(one)
            else:
                raise DeadlockError(self)
        return trained


SCHEDULES = st.builds(
    lambda seed, groups, lead, more, every, tail, filtered, at_once, order: Schedule(
        seed, groups, lead + more, lead, min(every, lead + 1), tail, filtered, 25, at_once, order
    ),
    st.integers(0, 2**32),
    st.integers(1, 8),
    st.integers(0, 4),
    st.integers(0, 3),
    st.integers(1, 5),
    st.sampled_from([1.0, 10.0, 50.0]),
    st.sampled_from([0.0, 0.4]),
    st.integers(1, 64),
    st.sampled_from(["oldest", "first_come"]),
)


@settings(max_examples=150, deadline=None)
@given(SCHEDULES)
def test_no_schedule_breaks_the_bound_or_waits_for_ever(schedule):
    trained = schedule.run()
    assert len(trained) == len(set(trained)) == schedule.steps * schedule.groups


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


def outcomes(slots_class=Slots, rule=take, **options):
    found = []
    for seed in range(40):
        try:
            Schedule(seed, **options).run(slots_class, rule)
            found.append("ends")
        except (DeadlockError, TooStaleError) as error:
            found.append(type(error).__name__)
    return set(found)


def test_slots_that_are_freed_at_training_let_runs_wait_for_ever():
    assert outcomes(every=2, bound=1, lead=1) == {"ends"}
    assert "DeadlockError" in outcomes(FreedAtTraining, every=2, bound=1, lead=1)


def test_a_rule_that_is_off_by_one_breaks_the_bound():
    assert outcomes(bound=1, lead=1) == {"ends"}
    assert "TooStaleError" in outcomes(rule=one_version_late, bound=1, lead=1)
    assert "TooStaleError" in outcomes(rule=ready_first, bound=1, lead=1)


def test_weights_that_come_more_seldom_than_the_lead_allows_are_waited_for_for_ever():
    assert outcomes(every=3, bound=3, lead=1) == {"DeadlockError"}


def test_the_lead_sets_the_mean_age_and_not_the_bound():
    means = {}
    for lead in (1, 4):
        schedule = Schedule(0, groups=8, bound=4, lead=lead, steps=300, tail=10.0)
        schedule.run()
        means[lead] = sum(schedule.ages) / len(schedule.ages)
    assert means[1] < 1.1
    assert means[4] > 2.5
