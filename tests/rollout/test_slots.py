"""Slots: taken at the start, given back when the version trained on the group is published."""

import pytest

from shoal.rollout.slots import Slots


def test_slots_come_back_when_the_version_trained_on_them_is_published():
    slots = Slots(prompts_per_step=2, lead=1)
    for _ in range(4):
        slots.start()
    assert slots.free == 0
    slots.trained(2, version=1)
    assert slots.free == 0
    assert slots.published(1) == 2
    assert slots.free == 2


def test_a_later_publication_gives_back_those_of_the_versions_before_it():
    slots = Slots(prompts_per_step=1, lead=2)
    for version in (1, 2, 3):
        slots.start()
        slots.trained(1, version)
    assert slots.published(0) == 0
    assert slots.published(2) == 2
    assert slots.free == 2
    assert slots.published(2) == 0


def test_a_group_that_is_given_up_gives_its_slot_back_at_once():
    slots = Slots(prompts_per_step=1, lead=0)
    slots.start()
    slots.give_up()
    assert slots.free == 1


def test_more_groups_than_slots_are_refused():
    slots = Slots(prompts_per_step=1, lead=0)
    slots.start()
    with pytest.raises(RuntimeError, match="all 1 slots are taken"):
        slots.start()
    with pytest.raises(RuntimeError, match="2 groups end, and 1 are running"):
        slots.trained(2, version=1)
