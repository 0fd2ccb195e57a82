from itertools import pairwise
from math import inf, nan, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.algorithms.advantages import group_advantages
from shoal.config.nodes.algorithm import AlgorithmConfig
from shoal.types import Completion, Group, Segment, StopReason

EVERY_KIND = ["standard", "centered", "leave_one_out"]
# Eighths add up exactly, so that only the formula is tested and not rounding.
rewards_lists = st.lists(st.one_of(st.none(), st.integers(-800, 800).map(lambda n: n / 8)), min_size=1, max_size=12)


def test_standard_advantages_divide_by_the_population_deviation():
    # mean 1/4, variance (3 * (1/4)^2 + (3/4)^2) / 4 = 3/16, so 1 -> (3/4) / (sqrt(3)/4) = sqrt(3), 0 -> -1/sqrt(3)
    result = group_advantages([0, 0, 0, 1], AlgorithmConfig(eps=0))
    assert result == pytest.approx([-1 / sqrt(3)] * 3 + [sqrt(3)], rel=1e-15)


def test_the_sample_deviation_divides_by_one_less():
    # variance 3/4 / 3 = 1/4, deviation 1/2
    result = group_advantages([0, 0, 0, 1], AlgorithmConfig(std="sample", eps=0))
    assert result == pytest.approx([-0.5, -0.5, -0.5, 1.5], rel=1e-15)


def test_eps_is_added_to_the_deviation():
    # deviation 1/2, eps 1/2: 1/2 / 1
    assert group_advantages([0, 1], AlgorithmConfig(eps=0.5)) == [-0.5, 0.5]


def test_centered_advantages_keep_the_scale_of_the_rewards():
    assert group_advantages([0, 4, 8], AlgorithmConfig(advantage="centered")) == [-4, 0, 4]


def test_leave_one_out_compares_with_the_mean_of_the_others():
    # 0 against (4 + 8) / 2, 4 against (0 + 8) / 2, 8 against (0 + 4) / 2
    assert group_advantages([0, 4, 8], AlgorithmConfig(advantage="leave_one_out")) == [-6, 0, 6]


@pytest.mark.parametrize("kind", EVERY_KIND)
@pytest.mark.parametrize("reward", [0.0, 0.1, 1 / 3, -7e300])
def test_equal_rewards_give_exactly_zero(kind, reward):
    # The mean of seven times 0.1 is not 0.1 in floating point; dividing its error by a tiny deviation gives noise.
    assert group_advantages([reward] * 7, AlgorithmConfig(advantage=kind, eps=0)) == [0.0] * 7


@pytest.mark.parametrize("kind", EVERY_KIND)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_rewards_equal_but_for_rounding_give_exactly_zero_and_are_of_zero_variance(kind, scale):
    # 0.1 + 0.2 + 0.3 in two orders.
    rewards = [((0.1 + 0.2) + 0.3) * scale, (0.1 + (0.2 + 0.3)) * scale, None]
    assert rewards[0] != rewards[1]
    assert group_advantages(rewards, AlgorithmConfig(advantage=kind, eps=0)) == [0.0, 0.0, None]
    completions = [Completion([Segment([1], [2], [0.0], [True])], StopReason.STOP, reward=one) for one in rewards]
    assert Group("g", completions).zero_variance


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_rewards_that_differ_by_more_than_rounding_are_told_apart(scale):
    rewards = [scale, scale * (1 + 1e-6)]
    assert group_advantages(rewards, AlgorithmConfig(eps=0)) == pytest.approx([-1, 1], rel=1e-6)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_an_unknown_reward_stays_unknown_and_leaves_the_others_alone(kind):
    algorithm = AlgorithmConfig(advantage=kind)
    with_gap = group_advantages([1.0, None, 0.25, 0.5], algorithm)
    without = group_advantages([1.0, 0.25, 0.5], algorithm)
    assert with_gap == [without[0], None, without[1], without[2]]


@pytest.mark.parametrize("rewards", [[], [1.0], [None, 1.0], [None, None]])
def test_fewer_than_two_known_rewards_give_no_advantage(rewards):
    assert group_advantages(rewards, AlgorithmConfig()) == [None] * len(rewards)


@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_a_reward_that_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match="finite"):
        group_advantages([0.0, bad], AlgorithmConfig())


@given(rewards_lists, st.sampled_from(EVERY_KIND), st.randoms())
def test_order_does_not_matter(rewards, kind, random):
    algorithm = AlgorithmConfig(advantage=kind)
    order = list(range(len(rewards)))
    random.shuffle(order)
    advantages = group_advantages(rewards, algorithm)
    shuffled = group_advantages([rewards[index] for index in order], algorithm)
    for got, expected in zip(shuffled, (advantages[index] for index in order), strict=True):
        assert got == expected or got == pytest.approx(expected, rel=1e-12)


@given(rewards_lists, st.sampled_from(EVERY_KIND))
def test_known_advantages_sum_to_zero_and_follow_the_rewards(rewards, kind):
    advantages = group_advantages(rewards, AlgorithmConfig(advantage=kind, eps=1e-3))
    pairs = sorted((r, a) for r, a in zip(rewards, advantages, strict=True) if a is not None)
    assert sum(a for _, a in pairs) == pytest.approx(0, abs=1e-8)
    assert all(left[1] <= right[1] + 1e-12 for left, right in pairwise(pairs))
