"""The rule of asynchronous training by hand; test_simulation.py has it over schedules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
