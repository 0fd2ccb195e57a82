"""Keys of `reward`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from effects.made import one_group
from effects.registry import effect
from effects.verifiers import picky
from shoal.config import ShoalConfig
from shoal.errors import TrainingError
from shoal.rewards.scorer import Scorer
from shoal.types import Group


@contextmanager
def scored(cfg: ShoalConfig, group: Group) -> Iterator[Scorer]:
    scorer = Scorer(cfg.reward, {"exact_answer": 1.0})
    try:
        scorer.score([group])
        yield scorer
    finally:
        scorer.close()


@pytest.fixture
def rewards(settings):
    """The rewards of one group under changed keys."""

    def of(changes: dict[str, object], *texts: str) -> list[float | None]:
        group = one_group(*texts)
        with scored(settings(changes), group):
            return group.rewards

    return of


@effect("reward.verifiers")
def test_verifiers_and_their_weights_make_the_reward(settings, rewards):
    texts = ("<answer>4</answer>", "#### 4")
    assert rewards({}, *texts) == [1.0, 0.0]
    assert rewards({"reward.verifiers": {"exact_answer": 2.0}}, *texts) == [2.0, 0.0]
    both = {"exact_answer": 2.0, "effects.verifiers:picky": 0.5}
    assert rewards({"reward.verifiers": both}, *texts) == [2.5, 0.5]


@effect("reward.timeout")
def test_a_verdict_after_the_deadline_is_missing(settings, rewards):
    slow = {"reward.verifiers": {"effects.verifiers:slow": 1.0}}
    assert rewards({**slow, "reward.timeout": 0.2}, "text") == [None]
    assert rewards(slow, "text") == [1.0]


@effect("reward.workers")
def test_verdicts_are_spread_over_the_workers(settings, rewards):
    verifiers = {"reward.verifiers": {"effects.verifiers:process_id": 1.0}}
    assert len(set(rewards(verifiers, *"abcdef"))) == 1
    # A worker that is late to start may find no work left, but not all of it done: it takes a while.
    many = [str(number) for number in range(60)]
    assert len(set(rewards({**verifiers, "reward.workers": 2}, *many))) == 2


@effect("reward.memory_gib")
def test_a_verifier_that_wants_more_memory_gives_no_reward(settings, rewards):
    hungry = {"reward.verifiers": {"effects.verifiers:hungry": 1.0}}
    assert rewards({**hungry, "reward.memory_gib": 1.0}, "text") == [None]
    assert rewards({**hungry, "reward.memory_gib": 0.0}, "text") == [1.0]


@effect("reward.max_missing")
def test_too_many_missing_rewards_stop_the_run(settings):
    def check(most: float) -> None:
        scorer = Scorer(settings({"reward.max_missing": most}).reward, {}, own={"picky": picky})
        scorer.score([one_group("good", "bad")]).check()

    check(0.5)
    with pytest.raises(TrainingError, match=r"1 of 2 rewards are missing, more than reward\.max_missing=0\.4 allows"):
        check(0.4)
