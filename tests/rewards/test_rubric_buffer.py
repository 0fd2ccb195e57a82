"""The lists of a prompt: what joins, what leaves, what comes back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.rewards.rubrics.buffer import HISTORY, RubricBuffer, Scored
from shoal.rewards.rubrics.rubric import Criterion


def criterion(title: str, origin: str = "adaptive") -> Criterion:
    return Criterion(title, f"about {title}", 1.0, origin)


def buffer(**options: object) -> RubricBuffer:
    return RubricBuffer(**{"max_active": 2, "static_persistent": True, "readd_static_every": 10, **options})  # type: ignore[arg-type]


def titles(criteria: tuple[Criterion, ...] | list[Criterion]) -> list[str]:
    return [one.title for one in criteria]


def stats(step: int, **deviations: float) -> dict[str, Scored]:
    return {criterion(title).key: Scored(step, 0.5, std, 4) for title, std in deviations.items()}


def test_the_datas_own_criteria_are_persistent_or_start_active():
    static = [criterion("a", "static")]
    assert titles(buffer().open("p", static, 1).persistent) == ["a"]
    entry = buffer(static_persistent=False).open("p", static, 1)
    assert (titles(entry.persistent), titles(entry.active)) == ([], ["a"])


def test_looking_changes_nothing():
    mine = buffer()
    assert titles(mine.look("p", [criterion("a")]).used) == ["a"]
    assert mine.entries == {}


def test_a_title_that_is_in_use_is_a_duplicate_whatever_its_case():
    mine = buffer()
    mine.open("p", [criterion("Clear", "static")], 1)
    added = mine.add(
        "p", [criterion("CLEAR"), criterion("new"), criterion("New"), criterion("brief")], [criterion("brief")]
    )
    assert titles(added) == ["new"]
    assert titles(mine.entries["p"].used) == ["Clear", "new"]


def test_equal_scores_make_a_criterion_inactive_and_the_largest_deviations_stay():
    mine = buffer()
    mine.open("p", [criterion("always", "static")], 1)
    mine.add("p", map(criterion, "abcd"))
    leaving = mine.record("p", stats(1, always=0.0, a=0.1, b=0.0, c=0.4, d=0.3))
    assert titles(leaving) == ["a", "b"]
    entry = mine.entries["p"]
    assert (titles(entry.persistent), titles(entry.active), titles(entry.inactive)) == (
        ["always"],
        ["c", "d"],
        ["a", "b"],
    )


def test_criteria_without_scores_stay_before_those_with_and_the_bound_holds():
    mine = buffer()
    mine.open("p", [], 1)
    mine.add("p", map(criterion, "abcd"))
    assert titles(mine.record("p", stats(1, a=0.5))) == ["a", "d"]


def test_one_that_was_given_up_comes_back_with_its_history():
    mine = buffer()
    mine.open("p", [], 1)
    mine.add("p", [criterion("a")])
    mine.record("p", stats(1, a=0.0))
    mine.add("p", [Criterion("a", "about a", 1.0, "adaptive", born=7)])
    entry = mine.entries["p"]
    assert (entry.active[0].born, entry.inactive) == (0, ())
    assert entry.history[entry.active[0].key][0].std == 0.0


def test_the_datas_own_come_back_after_n_steps_and_others_do_not():
    mine = buffer(static_persistent=False, readd_static_every=3)
    static = [criterion("s", "static")]
    mine.open("p", static, 1)
    mine.add("p", [criterion("a")])
    mine.record("p", stats(1, s=0.0, a=0.0))
    assert titles(mine.open("p", static, 3).active) == []
    assert titles(mine.open("p", static, 4).active) == ["s"]
    mine.record("p", stats(4, s=0.0))
    assert titles(mine.open("p", static, 6).active) == []
    assert titles(mine.open("p", static, 8).active) == ["s"]  # a prompt seen late is not passed over


def test_prompts_do_not_share_lists():
    mine = buffer()
    for prompt in "pq":
        mine.open(prompt, [], 1)
    mine.add("p", [criterion("a")])
    assert titles(mine.entries["q"].used) == []


@given(
    st.lists(
        st.tuples(
            st.sampled_from("pq"),
            st.lists(st.sampled_from("abcdef"), max_size=3),
            st.lists(st.floats(0, 1), min_size=6, max_size=6),
        ),
        max_size=12,
    ),
    st.integers(0, 3),
)
def test_no_criterion_is_lost_or_doubled_and_the_state_survives_json(
    steps: list[tuple[str, list[str], list[float]]], max_active: int
):
    mine = buffer(max_active=max_active)
    seen: dict[str, set[str]] = {"p": set(), "q": set()}
    for step, (prompt, new, deviations) in enumerate(steps):
        mine.open(prompt, [criterion("s", "static")], step)
        mine.add(prompt, map(criterion, new))
        seen[prompt] |= set(new)
        mine.record(prompt, stats(step, **dict(zip("abcdef", deviations, strict=True))))
        entry = mine.entries[prompt]
        assert len(entry.active) <= max_active
        assert sorted(titles(entry.active + entry.inactive)) == sorted(seen[prompt])
        assert all(len(results) <= HISTORY for results in entry.history.values())
    other = buffer(max_active=max_active)
    other.load_state_dict(json.loads(json.dumps(mine.state_dict())))
    assert other.entries == mine.entries


def test_the_history_keeps_the_newest():
    mine = buffer()
    mine.open("p", [criterion("s", "static")], 0)
    for step in range(HISTORY + 5):
        mine.record("p", stats(step, s=0.5))
    [results] = mine.entries["p"].history.values()
    assert (results[0].step, results[-1].step) == (5, HISTORY + 4)
    with pytest.raises(AttributeError):
        mine.entries["p"].active = ()  # type: ignore[misc]
