"""The packer: whole groups, oldest first, and nothing lost, doubled or starved, whatever is posted."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.rollout_api.server.packer import Backlog, Shortage, WaitingGroup, minimums_of, pack


def backlog_of(*sizes: int, env_id: int | None = None) -> Backlog:
    backlog = Backlog()
    for id_, size in enumerate(sizes, 1):
        backlog.add(WaitingGroup(id_, size, env_id, 0))
    return backlog


def packed(backlog: Backlog, batch_size: int, **options) -> list[int]:
    """The ids of the next batch, taken out."""
    batch = pack(backlog, batch_size, **options)
    assert not isinstance(batch, Shortage), batch.reason
    backlog.take(batch)
    return [group.id for group in batch]


def test_the_oldest_groups_come_first():
    backlog = backlog_of(4, 4, 4, 4)
    assert packed(backlog, 8) == [1, 2]
    assert packed(backlog, 8) == [3, 4]


def test_too_little_says_how_much_there_is():
    assert pack(backlog_of(4), 8) == Shortage("4 of 8 sequences are waiting")


def test_one_stray_group_of_5_does_not_block_groups_of_4():
    # Atropos's packer: nothing, for ever. Here 5 + 0 is the best that can be done beside the oldest.
    backlog = backlog_of(5, *[4] * 10)
    assert packed(backlog, 8) == [1]
    assert packed(backlog, 8) == [2, 3]


def test_groups_of_3_give_batches_of_6_where_8_cannot_be_had():
    assert packed(backlog_of(3, 3, 3), 8) == [1, 2]


def test_a_younger_group_fills_a_batch_exactly():
    assert packed(backlog_of(3, 3, 5), 8) == [1, 3]


def test_of_several_exact_fits_the_one_with_the_oldest_is_taken():
    assert packed(backlog_of(4, 2, 4, 2), 8) == [1, 2, 4]


def test_a_group_larger_than_a_batch_is_a_batch():
    backlog = backlog_of(4, 20, 4)
    assert packed(backlog, 8) == [1, 3]
    assert packed(backlog, 8) == [2]


def test_fragments_fill_a_batch():
    # Sizes that Atropos's server flushed and then could not batch.
    assert packed(backlog_of(2, 1, 1, 3, 1), 8) == [1, 2, 3, 4, 5]


def test_a_large_batch_of_small_groups_is_full_although_one_group_is_huge():
    backlog = backlog_of(*[1] * 3000, 10_000, *[1] * 3000)
    assert len(packed(backlog, 4096)) == 4096


def test_minimums_are_filled_first():
    backlog = backlog_of(2, 2, 2, 2, env_id=0)
    for id_ in (5, 6):
        backlog.add(WaitingGroup(id_, 2, 1, 0))
    assert packed(backlog, 8, minimums={1: 4}) == [1, 2, 5, 6]


def test_a_batch_waits_for_a_minimum_only_while_it_is_patient():
    backlog = backlog_of(4, 4, env_id=0)
    waits = pack(backlog, 8, {1: 4})
    assert isinstance(waits, Shortage)
    assert waits.env_id == 1
    assert "environment 1 has 0 of the 4 sequences" in waits.reason
    assert packed(backlog, 8, minimums={1: 4}, patient=False) == [1, 2]


def test_the_oldest_group_is_in_the_batch_although_minimums_want_all_of_it():
    backlog = backlog_of(4)  # of no environment
    for id_ in range(2, 6):
        backlog.add(WaitingGroup(id_, 4, 0, 0))
    assert packed(backlog, 8, minimums={0: 8}) == [1, 2]


@pytest.mark.parametrize(
    ("shares", "expected"), [({0: 0.25, 1: 0.5}, {0: 2, 1: 4}), ({0: 1.0, 1: 1.0}, {0: 4, 1: 4}), ({}, {})]
)
def test_minimums_above_one_shrink_together(shares, expected):
    assert minimums_of(shares, 8) == expected


steps = st.lists(
    st.one_of(
        st.tuples(st.just("post"), st.integers(1, 12), st.sampled_from([None, 0, 1, 2])),
        st.tuples(st.just("batch"), st.booleans()),
        st.tuples(st.just("register"), st.integers(1, 16)),
        st.tuples(st.just("shares"), st.dictionaries(st.sampled_from([0, 1, 2, 3]), st.floats(0, 1), max_size=4)),
    ),
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(steps)
def test_nothing_is_lost_doubled_or_starved(steps):
    backlog, batch_size, shares = Backlog(), 8, {}
    posted: dict[int, WaitingGroup] = {}
    delivered: Counter[int] = Counter()
    # Position in the queue at arrival: the group must be out after that many batches and one.
    due: dict[int, int] = {}
    batches = 0

    def deliver(patient: bool) -> bool:
        nonlocal batches
        before = list(backlog.oldest_first())
        batch = pack(backlog, batch_size, minimums_of(shares, batch_size), patient=patient)
        assert list(backlog.oldest_first()) == before, "packing only looks"
        if isinstance(batch, Shortage):
            assert backlog.sequences < batch_size or (patient and batch.env_id is not None)
            assert batch.reason
            return False
        backlog.take(batch)
        batches += 1
        ids = [group.id for group in batch]
        assert ids == sorted(set(ids))
        assert ids[0] == before[0].id, "the oldest is always in it"
        assert sum(group.size for group in batch) <= batch_size or len(batch) == 1
        delivered.update(ids)
        assert all(batches <= due[id_] for id_ in ids)
        return True

    for step in steps:
        if step[0] == "post":
            group = WaitingGroup(len(posted) + 1, step[1], step[2], 0)
            posted[group.id] = group
            due[group.id] = batches + backlog.groups + 1
            backlog.add(group)
        elif step[0] == "batch":
            deliver(step[1])
        elif step[0] == "register":
            batch_size = step[1]
        else:
            shares = step[1]
    while deliver(patient=False):
        pass
    waiting = {group.id: group for group in backlog.oldest_first()}
    assert set(delivered) | set(waiting) == set(posted)
    assert not set(delivered) & set(waiting)
    assert max(delivered.values(), default=1) == 1
    assert backlog.sequences == sum(group.size for group in waiting.values()) < batch_size
    assert backlog.groups == len(waiting)
    assert backlog.largest() == max((group.size for group in waiting.values()), default=1)
    for env_id in (None, 0, 1, 2):
        sizes = [group.size for group in waiting.values() if group.env_id == env_id]
        assert backlog.sequences_of(env_id) == sum(sizes)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 24))
def test_a_batch_is_exact_wherever_the_oldest_group_allows(sizes, batch_size):
    backlog = backlog_of(*sizes)
    batch = pack(backlog, batch_size)
    sums = {0}
    for size in sizes[1:]:
        sums |= {size + other for other in sums}
    if sum(sizes) < batch_size:
        assert isinstance(batch, Shortage)
    elif sizes[0] >= batch_size:
        assert [group.id for group in batch] == [1]
    else:
        best = max(size for size in sums if size <= batch_size - sizes[0])
        assert sum(group.size for group in batch) == sizes[0] + best


@given(st.lists(st.tuples(st.integers(1, 9), st.sampled_from([None, 0, 1])), max_size=30), st.data())
def test_put_back_undoes_take(groups, data):
    backlog = Backlog()
    for id_, (size, env_id) in enumerate(groups, 1):
        backlog.add(WaitingGroup(id_, size, env_id, 0))
    before = list(backlog.oldest_first())
    taken = [group for group in before if data.draw(st.booleans())]
    backlog.take(taken)
    assert list(backlog.oldest_first()) == [group for group in before if group not in taken]
    backlog.put_back(taken)
    assert list(backlog.oldest_first()) == before
    assert backlog.sequences == sum(size for size, _ in groups)


def test_the_oldest_groups_are_taken_as_long_as_they_are_unwanted():
    backlog = Backlog()
    for id_, (version, env_id) in enumerate([(0, 0), (0, 1), (3, 0), (0, 0)], 1):
        backlog.add(WaitingGroup(id_, 2, env_id, version))
    assert [group.id for group in backlog.take_oldest(lambda group: group.version < 2)] == [1, 2]
    assert [group.id for group in backlog.oldest_first()] == [3, 4]
    assert backlog.sequences == backlog.sequences_of(0) == 4
