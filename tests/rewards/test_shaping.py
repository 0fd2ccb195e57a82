from typing import Any

import pytest

from shoal.config.nodes.data import RewardConfig
from shoal.config.nodes.reward import FormatConfig, LengthPenaltyConfig
from shoal.errors import ConfigError
from shoal.monitor.metrics import group_metrics, is_right
from shoal.rewards.base import Submission
from shoal.rewards.scorer import Scorer
from shoal.rewards.verifiers.format import format_reward
from shoal.types import Completion, Group, Prompt, Segment, StopReason

GOOD, BARE = "<think>2+2</think><answer>4</answer>", "#### 4"
GOOD_WRONG, BARE_WRONG = "<think>2+2</think><answer>5</answer>", "#### 5"
FOUR = (GOOD, BARE, GOOD_WRONG, BARE_WRONG)


def completion(text: str, tokens: int = 3, stop: StopReason = StopReason.STOP, **info: Any) -> Completion:
    return Completion([Segment([1], [2] * tokens, [0.0] * tokens, [True] * tokens)], stop, text=text, info=info)


def scored(reward: RewardConfig, *completions: Completion, source: str = "", **prompt: Any) -> Group:
    group = Group("p", list(completions), Prompt("p", [1], **{"ground_truth": "4", "source": source, **prompt}))
    with Scorer(reward, {"gsm8k": 1.0}) as scorer:
        scorer.score([group])
    return group


@pytest.mark.parametrize("scale", [1.0, 0.25, 2.0, -0.5, 0.0])
@pytest.mark.parametrize("gate", [False, True])
def test_the_format_adds_its_scale_and_the_gate_takes_the_verifiers_part_only(scale: float, gate: bool) -> None:
    reward = RewardConfig(scale=10.0, format=FormatConfig("think_answer", scale=scale, gate=gate))
    group = scored(reward, *map(completion, FOUR))
    # right with the format, right without, wrong with, wrong without
    assert group.rewards == [10 + scale, 0.0 if gate else 10.0, scale, 0.0]
    assert [one.reward_parts["format"] for one in group.completions] == [1.0, 0.0, 1.0, 0.0]


def test_a_right_answer_in_the_wrong_form_is_right_and_a_well_formed_wrong_one_is_not() -> None:
    group = scored(RewardConfig(format=FormatConfig("think_answer", scale=1.0)), *map(completion, FOUR))
    assert [is_right(one) for one in group.completions] == [True, True, False, False]
    metrics = group_metrics([group])
    assert metrics["reward_part/format/mean"] == 0.5
    assert metrics["reward_part/gsm8k/one"] == 0.5


def test_without_verification_the_form_alone_is_rewarded_and_no_verifier_runs() -> None:
    reward = RewardConfig(verify=False, format=FormatConfig("think_answer", scale=0.5))
    group = scored(reward, *map(completion, FOUR))
    assert group.rewards == [0.5, 0.0, 0.5, 0.0]
    assert set(group.completions[0].reward_parts) == {"format"}


def test_the_scale_multiplies_the_weighted_sum() -> None:
    reward = RewardConfig(scale=10.0, verifiers={"gsm8k": 1.0, "up_to_max_length": 0.5})
    assert scored(reward, completion(BARE)).rewards == [15.0]


def test_a_completion_that_was_cut_off_gets_the_non_stop_reward_in_place_of_its_own() -> None:
    stopped, cut = completion(BARE), completion(BARE, stop=StopReason.LENGTH)
    assert scored(RewardConfig(non_stop=-1.0), stopped, cut).rewards == [1.0, -1.0]
    assert scored(RewardConfig(), stopped, cut).rewards == [1.0, 1.0]


def test_a_completion_that_the_engine_did_not_finish_has_no_reward_also_with_a_non_stop_one() -> None:
    assert scored(RewardConfig(non_stop=-1.0), completion(BARE, stop=StopReason.ERROR)).rewards == [None]


def test_only_good_outputs_are_rewarded_where_that_is_asked() -> None:
    good = {"output": "4", "error": None, "timed_out": False}
    cases: list[tuple[dict[str, Any], float]] = [
        ({}, 0.0),
        ({"tools": []}, 0.0),
        ({"tools": [good]}, 1.0),
        ({"tools": [good, {"output": ""}]}, 1.0),
        ({"tools": [{"output": ""}]}, 0.0),
        ({"tools": [good, {"output": "x", "error": "no such tool"}]}, 0.0),
        ({"tools": [good, {"output": "x", "timed_out": True}]}, 0.0),
    ]
    group = scored(RewardConfig(only_good_outputs=True), *(completion(BARE, **info) for info, _ in cases))
    assert group.rewards == [reward for _, reward in cases]


def test_a_length_penalty_counts_tokens_above_and_below_and_leaves_the_reward_alone() -> None:
    limits = LengthPenaltyConfig(coef=0.25, above=6, below=2)
    group = scored(RewardConfig(length=limits), *(completion(BARE, tokens) for tokens in (1, 2, 6, 9)))
    assert [one.penalties["length"] for one in group.completions] == [0.25, 0.0, 0.0, 0.75]
    assert group.rewards == [1.0] * 4
    assert group_metrics([group])["penalty/length"] == 0.25


def test_a_length_penalty_may_be_for_some_data_sets_only() -> None:
    reward = RewardConfig(length=LengthPenaltyConfig(coef=0.25, above=0, sources=["long"]))
    assert scored(reward, completion(BARE, 4), source="long").completions[0].penalties == {"length": 1.0}
    assert scored(reward, completion(BARE, 4), source="short").completions[0].penalties == {"length": 0.0}


def test_a_missing_format_makes_the_reward_missing() -> None:
    reward = RewardConfig(format=FormatConfig("(", scale=1.0))
    group = scored(reward, completion(BARE))
    assert group.rewards == [None]
    assert "missing ), unterminated subpattern" in group.completions[0].info["missing"]["format"]


def test_a_pattern_that_backtracks_for_ever_costs_one_deadline() -> None:
    reward = RewardConfig(format=FormatConfig("(a+)+b", scale=1.0), timeout=2)
    group = scored(reward, completion("a" * 60), completion("aab"))
    assert [one.reward_parts["format"] for one in group.completions] == [None, 1.0]


def test_own_patterns_match_the_whole_completion() -> None:
    assert format_reward(Submission("yes\nno"), pattern="yes.no") == 1.0
    assert format_reward(Submission("yes\nno more"), pattern="yes.no") == 0.0
    assert format_reward(Submission("a</think> <answer>x</answer> b"), pattern="answer_after_think") == 1.0
    assert format_reward(Submission("a</think> so <answer>x</answer>"), pattern="answer_after_think") == 0.0
    assert format_reward(Submission("</think><answer>x"), pattern="answer_after_think") == 0.0


def test_options_reach_the_verifier_that_they_name_and_no_other() -> None:
    reward = RewardConfig(verifiers={"max_length": 1.0, "up_to_max_length": 1.0}, options={"max_length": {"scale": 8}})
    parts = scored(reward, completion("x", 8)).completions[0].reward_parts
    assert parts == {"max_length": 0.5, "up_to_max_length": 1 - 4 / 32768}


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"max_length": {"scal": 8}}, "reward.options.max_length.scal: .* it has scale"),
        ({"f1": {"scale": 8}}, "reward.options.f1.scale: .* it has none"),
        ({"nothing": {"scale": 8}}, "no verifier is named 'nothing'"),
    ],
)
def test_options_that_a_verifier_does_not_have_are_refused(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        Scorer(RewardConfig(options=options), {"gsm8k": 1.0})


def test_the_format_is_not_rewarded_twice() -> None:
    reward = RewardConfig(verifiers={"format": 1.0}, format=FormatConfig("think_answer", scale=1.0))
    with pytest.raises(ConfigError, match="the format is rewarded twice"):
        Scorer(reward, {})


def test_each_verifier_of_a_row_may_have_a_ground_truth_of_its_own() -> None:
    truths = {"gsm8k": "4", "string_match": "four"}
    group = scored(RewardConfig(), completion("four, that is 4"), ground_truth=truths, verifiers=list(truths))
    assert group.completions[0].reward_parts == {"gsm8k": 1.0, "string_match": 0.0}
    group = scored(RewardConfig(), completion("Four."), ground_truth=truths, verifiers=list(truths))
    assert group.completions[0].reward_parts == {"gsm8k": 0.0, "string_match": 1.0}
