"""Keys of `reward` that shape what the verifiers say."""

from __future__ import annotations

from effects.made import one_group
from effects.registry import effect
from shoal.config import ShoalConfig
from shoal.rewards.scorer import Scorer
from shoal.types import Group, StopReason

RIGHT = "<answer>4</answer>"
FORMATTED = "<think>2+2</think><answer>4</answer>"


def scored(cfg: ShoalConfig, group: Group) -> Group:
    """The group after scoring, by `exact_answer` unless other verifiers are named."""
    with Scorer(cfg.reward, {"exact_answer": 1.0}) as scorer:
        scorer.score([group])
    return group


@effect("reward.options")
def test_options_reach_their_verifier(settings):
    upper = {"reward.verifiers": {"regex": 1.0}}
    group = one_group("4 or so")
    group.prompt.ground_truth = "4"
    assert scored(settings(upper), group).rewards == [1.0]
    assert scored(settings({**upper, "reward.options": {"regex": {"whole": True}}}), group).rewards == [0.0]


@effect("reward.scale")
def test_the_verifiers_sum_is_scaled(settings):
    assert scored(settings({}), one_group(RIGHT)).rewards == [1.0]
    assert scored(settings({"reward.scale": 10.0}), one_group(RIGHT)).rewards == [10.0]


@effect("reward.verify", "reward.format.pattern", "reward.format.scale")
def test_the_format_alone_can_make_the_reward(settings):
    group = one_group(RIGHT, FORMATTED)
    form = {"reward.format.pattern": "think_answer", "reward.format.scale": 0.5}
    assert scored(settings({}), group).rewards == [1.0, 1.0]
    assert scored(settings({**form, "reward.verify": False}), group).rewards == [0.0, 0.5]


@effect("reward.format.gate", "reward.format.pattern")
def test_without_the_format_a_gate_leaves_nothing(settings):
    form = {"reward.format.pattern": "think_answer", "reward.format.gate": True}
    assert scored(settings({}), one_group(RIGHT, FORMATTED)).rewards == [1.0, 1.0]
    assert scored(settings(form), one_group(RIGHT, FORMATTED)).rewards == [0.0, 1.0]


@effect("reward.non_stop")
def test_a_cut_off_completion_has_a_reward_of_its_own(settings):
    group = one_group(RIGHT, RIGHT)
    group.completions[1].stop_reason = StopReason.LENGTH
    assert scored(settings({}), group).rewards == [1.0, 1.0]
    assert scored(settings({"reward.non_stop": -0.5}), group).rewards == [1.0, -0.5]


@effect("reward.only_good_outputs")
def test_a_failed_tool_costs_the_reward(settings):
    group = one_group(RIGHT, RIGHT)
    group.completions[0].info["tools"] = [{"output": "4"}]
    group.completions[1].info["tools"] = [{"output": "4"}, {"output": "", "error": "no such file"}]
    assert scored(settings({}), group).rewards == [1.0, 1.0]
    assert scored(settings({"reward.only_good_outputs": True}), group).rewards == [1.0, 0.0]


def penalties(group: Group) -> list[float]:
    return [completion.penalties.get("length", 0.0) for completion in group.completions]


@effect("reward.length.coef", "reward.length.above")
def test_tokens_beyond_a_length_cost(settings):
    group = one_group(RIGHT)
    length = group.completions[0].num_sampled
    assert penalties(scored(settings({"reward.length.coef": 0.25, "reward.length.above": 0}), group)) == [0.25 * length]
    assert penalties(scored(settings({"reward.length.coef": 0.5, "reward.length.above": length}), group)) == [0.0]


@effect("reward.length.below")
def test_tokens_missing_to_a_length_cost(settings):
    group = one_group(RIGHT)
    length = group.completions[0].num_sampled
    limits = {"reward.length.coef": 0.25, "reward.length.above": 100}
    assert penalties(scored(settings(limits), group)) == [0.0]
    assert penalties(scored(settings({**limits, "reward.length.below": length + 2}), group)) == [0.5]


@effect("reward.length.sources")
def test_the_length_penalty_can_be_for_some_sources_only(settings):
    group = one_group(RIGHT)
    group.prompt.source = "mine"
    limits = {"reward.length.coef": 1.0, "reward.length.above": 0}
    assert penalties(scored(settings({**limits, "reward.length.sources": ["mine"]}), group)) != [0.0]
    assert penalties(scored(settings({**limits, "reward.length.sources": ["other"]}), group)) == [0.0]
