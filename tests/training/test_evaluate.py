from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.training.evaluate import evaluation_metrics, pass_at_k, sampling_error
from shoal.types import Completion, Group, Prompt, Segment, StopReason


def completion(score: float | None, tokens: int = 2) -> Completion:
    segment = Segment([1], [5] * tokens, [0.0] * tokens, [True] * tokens)
    return Completion([segment], StopReason.STOP, reward=score, reward_parts={"exact": score})


def group(name: str, scores: list[float | None], source: str = "a") -> Group:
    return Group(name, [completion(score) for score in scores], Prompt(name, [1], source=source))


@given(st.integers(1, 7), st.data())
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(samples: int, data: st.DataObject) -> None:
    right, k = data.draw(st.integers(0, samples)), data.draw(st.integers(1, samples))
    draws = list(combinations([True] * right + [False] * (samples - right), k))
    assert pass_at_k(samples, right, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_partial_credit_and_missing_rewards_are_not_right() -> None:
    metrics = evaluation_metrics([group("p", [1.0, 0.5, None, 0.0])], 4)
    assert metrics["accuracy"] == 0.25
    assert metrics["missing"] == 0.25
    assert metrics["length"] == 2.0
    # one of four right: 1 - C(3,2)/C(4,2) = 1/2, and four draws always find it
    assert metrics["pass@2"] == pytest.approx(0.5)
    assert metrics["pass@4"] == 1.0
    assert metrics["pass@1"] == metrics["accuracy"]


def test_several_sources_are_reported_apart() -> None:
    metrics = evaluation_metrics([group("p", [1.0]), group("q", [0.0], "b"), group("r", [1.0], "b")], 1)
    assert metrics["a/accuracy"] == 1.0
    assert metrics["b/accuracy"] == 0.5
    assert "a/accuracy" not in evaluation_metrics([group("p", [1.0])], 1)


def test_the_mean_reward_is_over_completions_with_one():
    assert evaluation_metrics([group("p", [1.0, 0.5, None, 0.0])], 4)["reward"] == 0.5
    assert "reward" not in evaluation_metrics([group("p", [None])], 1)


def test_the_standard_error_is_that_of_the_mean_over_prompts():
    groups = [group("p", [1.0, 1.0]), group("q", [0.0, 1.0]), group("r", [0.0, 0.0])]
    error = sampling_error(groups)
    # Shares 1, 1/2, 0: their standard deviation is 1/2.
    assert error == {"accuracy_stderr": pytest.approx(0.5 / 3**0.5), "prompts": 3, "completions": 6}
    assert sampling_error(groups[:1]) == {"prompts": 1, "completions": 2}
