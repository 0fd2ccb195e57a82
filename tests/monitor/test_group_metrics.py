import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_groups import completion, group

from shoal.monitor.metrics import TRAINED, describe, group_metrics, is_right, step_metrics
from shoal.types import FORMAT_PART, Group, Prompt, Segment, StopReason


def example() -> list[Group]:
    """Group a: rewards 1, 0, missing, with lengths 2, 4, 9. Group b: both 1, lengths 3 and 5. Group c: both 0, 6, 6."""
    return [
        group(
            "a",
            [
                completion(1.0, 2, advantage=1.0, version=3),
                completion(0.0, 4, advantage=-1.0, version=4, stop=StopReason.LENGTH),
                completion(None, 9, version=4, stop=StopReason.ERROR),
            ],
        ),
        group("b", [completion(1.0, 3, advantage=0.0, version=4), completion(1.0, 5, advantage=0.0, version=4)]),
        group("c", [completion(0.0, 6, advantage=0.0, version=4), completion(0.0, 6, advantage=0.0, version=4)]),
    ]


def test_reward_statistics_are_over_the_known_rewards():
    metrics = group_metrics(example())
    # Known rewards: 1 0 1 1 0 0. Mean 3/6; population variance 1/2 - 1/4 = 1/4, so std 1/2. One of 7 is missing.
    assert metrics["reward/mean"] == 0.5
    assert metrics["reward/std"] == pytest.approx(0.5)
    assert (metrics["reward/min"], metrics["reward/max"]) == (0.0, 1.0)
    assert metrics["reward/missing"] == pytest.approx(1 / 7)


def test_group_shares_are_over_scored_groups_and_ignore_the_missing_rewards_within():
    unscored = group("d", [completion(None), completion(None)])
    metrics = group_metrics([*example(), unscored])
    # a is mixed, b all right, c all wrong; d has no known reward and is not in the denominator of 3.
    assert metrics["groups/all_right"] == pytest.approx(1 / 3)
    assert metrics["groups/all_wrong"] == pytest.approx(1 / 3)
    assert metrics["groups/zero_variance"] == pytest.approx(2 / 3)
    assert metrics["count/groups"] == 4


def test_a_group_is_all_right_when_only_its_known_rewards_are_right():
    metrics = group_metrics([group("a", [completion(1.0), completion(None)])])
    assert metrics["groups/all_right"] == 1
    assert metrics["groups/all_wrong"] == 0


def test_equal_partial_credit_is_neither_right_nor_wrong():
    metrics = group_metrics([group("a", [completion(0.5), completion(0.5)])])
    assert metrics["groups/all_right"] == metrics["groups/all_wrong"] == 0
    assert metrics["groups/zero_variance"] == 1
    assert "length/right" not in metrics


def test_a_weighted_reward_is_right_by_its_parts():
    # Weights .9 and .1: the reward of a right answer that is too long is .9, of a right and short one 1.
    assert is_right(completion(1.0, parts={"answer": 1.0, "brevity": 1.0}))
    assert not is_right(completion(0.9, parts={"answer": 1.0, "brevity": 0.0}))
    # Weight 10: reward 5 is half right.
    assert not is_right(completion(5.0, parts={"answer": 0.5}))
    assert not is_right(completion(None, parts={"answer": 1.0, "brevity": None}))
    # The form says nothing of the answer.
    assert is_right(completion(1.0, parts={"answer": 1.0, FORMAT_PART: 0.0}))
    assert not is_right(completion(1.0, parts={"answer": 0.0, FORMAT_PART: 1.0}))


def test_a_completion_without_parts_is_right_by_its_reward():
    assert is_right(completion(1.0, parts={}))
    assert not is_right(completion(0.99, parts={}))
    assert not is_right(completion(None, parts={}))


def test_each_part_has_its_own_denominator():
    rows = [
        completion(1.5, parts={"answer": 1.0, "format": 0.5}),
        completion(None, parts={"answer": None, "format": 1.0}),
        completion(0.0, parts={"answer": 0.0}),
        completion(0.5, parts={"answer": 0.5}),
    ]
    metrics = group_metrics([group("a", rows)])
    # answer: known 1, 0, .5 of four; format: .5 and 1 of two.
    assert metrics["reward_part/answer/mean"] == pytest.approx(0.5)
    assert metrics["reward_part/answer/one"] == pytest.approx(1 / 3)
    assert metrics["reward_part/answer/missing"] == pytest.approx(1 / 4)
    assert metrics["reward_part/format/mean"] == pytest.approx(0.75)
    assert metrics["reward_part/format/one"] == pytest.approx(1 / 2)
    assert metrics["reward_part/format/missing"] == 0


def test_a_reward_above_one_does_not_count_as_exactly_one():
    metrics = group_metrics([group("a", [completion(2.0), completion(1.0)])])
    assert metrics["reward_part/answer/one"] == 0.5


def test_lengths_of_right_and_wrong_leave_out_the_unscored():
    metrics = group_metrics(example())
    # All: (2 + 4 + 9 + 3 + 5 + 6 + 6) / 7 = 5. Right: 2, 3, 5. Wrong: 4, 6, 6.
    assert metrics["length/mean"] == 5
    assert (metrics["length/min"], metrics["length/max"]) == (2, 9)
    assert metrics["length/right"] == pytest.approx(10 / 3)
    assert metrics["length/wrong"] == pytest.approx(16 / 3)
    assert metrics["count/sampled_tokens"] == 35


def test_tokens_that_are_not_trained_count_in_the_length():
    conversation = completion(1.0, 2)
    conversation.segments.append(Segment([1, 2, 5, 5], [7, 7, 7], [-1.0] * 3, [False, False, True]))
    assert group_metrics([group("a", [conversation])])["length/mean"] == 5


def test_every_stop_reason_has_a_share_and_they_add_up_to_one():
    metrics = group_metrics(example())
    shares = {name: value for name, value in metrics.items() if name.startswith("stop/")}
    assert shares == pytest.approx(
        {"stop/stop": 5 / 7, "stop/length": 1 / 7, "stop/turns": 0, "stop/abort": 0, "stop/error": 1 / 7}
    )


def test_advantages_are_over_the_completions_that_have_one():
    metrics = group_metrics(example())
    # 1, -1 and four zeros: 2/6. The completion without a reward has no advantage.
    assert metrics["advantage/abs_mean"] == pytest.approx(1 / 3)
    assert (metrics["advantage/min"], metrics["advantage/max"]) == (-1, 1)


def test_staleness_is_the_trained_version_less_the_oldest_sampled_one():
    metrics = group_metrics(example(), version=4)
    # One completion was sampled with version 3, six with 4.
    assert metrics["staleness/mean"] == pytest.approx(1 / 7)
    assert metrics["staleness/max"] == 1


def test_a_completion_of_two_versions_is_as_stale_as_its_first_tokens():
    mixed = completion(1.0, 4)
    mixed.versions = [(0, 2), (3, 5)]
    assert group_metrics([group("a", [mixed])], version=5)["staleness/max"] == 3


def test_an_unknown_version_is_left_out_of_the_staleness():
    foreign = completion(1.0)
    foreign.versions = []
    assert "staleness/mean" not in group_metrics([group("a", [foreign])], version=5)
    assert group_metrics([group("a", [foreign, completion(1.0, version=4)])], version=5)["staleness/mean"] == 1


def test_rewards_by_source_appear_where_there_are_several_sources():
    one, two = group("a", [completion(1.0), completion(None)]), group("b", [completion(0.0), completion(0.5)], "gsm8k")
    metrics = group_metrics([one, two])
    assert metrics["source/story/reward"] == 1
    assert metrics["source/gsm8k/reward"] == 0.25
    assert not any(name.startswith("source/") for name in group_metrics([one]))


def test_penalties_are_averaged_over_the_completions_that_have_them():
    rows = [completion(1.0, penalties={"overlong": 0.5}), completion(1.0, penalties={"overlong": 0.1}), completion(0.0)]
    assert group_metrics([group("a", rows)])["penalty/overlong"] == pytest.approx(0.3)


def test_a_step_without_groups_has_counts_only():
    assert group_metrics([]) == {"count/groups": 0, "count/completions": 0, "count/sampled_tokens": 0}


def test_a_step_without_any_known_reward_says_so_by_its_missing_share():
    metrics = group_metrics([group("a", [completion(None), completion(None)])])
    assert metrics["reward/missing"] == 1
    assert "reward/mean" not in metrics
    assert "groups/all_right" not in metrics
    assert describe(metrics) is None


@given(st.lists(st.lists(st.sampled_from([None, 0.0, 0.5, 1.0]), min_size=1, max_size=4), min_size=1, max_size=5))
def test_shares_stay_between_zero_and_one_and_do_not_overlap(rewards: list[list[float | None]]):
    groups = [
        Group(id=str(index), completions=[completion(reward) for reward in row], prompt=Prompt(str(index), [1]))
        for index, row in enumerate(rewards)
    ]
    metrics = group_metrics(groups, version=1)
    for name, value in metrics.items():
        if name.startswith(("groups/", "stop/", "reward/missing")):
            assert 0 <= value <= 1, name
    if "groups/all_right" in metrics:
        assert metrics["groups/all_right"] + metrics["groups/all_wrong"] <= metrics["groups/zero_variance"] + 1e-12


def right_group(advantage: float = 0.0) -> Group:
    return group("r", [completion(1.0, advantage=advantage), completion(1.0, advantage=-advantage)])


def wrong_group() -> Group:
    return group("w", [completion(0.0, advantage=0.0), completion(0.0, advantage=0.0)])


def test_a_step_of_solved_groups_says_that_a_loss_of_zero_is_right():
    assert describe(group_metrics([right_group(), right_group()])) == (
        "every group was solved: nothing to learn from this step's rewards (a policy loss of 0 is right)"
    )


def test_a_step_of_failed_groups_says_so():
    sentence = describe(group_metrics([wrong_group()]))
    assert sentence is not None
    assert sentence.startswith("every group failed: nothing to learn")


def test_a_step_of_solved_and_failed_groups_gives_both_shares():
    sentence = describe(group_metrics([right_group(), wrong_group(), wrong_group(), wrong_group()]))
    assert sentence is not None
    assert sentence.startswith("25% of the groups were solved by all their completions and 75% by none:")


def test_equal_partial_credit_says_that_all_rewards_are_equal():
    sentence = describe(group_metrics([group("a", [completion(0.5, advantage=0.0), completion(0.5, advantage=0.0)])]))
    assert sentence is not None
    assert sentence.startswith("within every group all rewards are equal:")


def test_advantages_of_a_solved_step_are_not_called_nothing():
    assert describe(group_metrics([right_group(advantage=1.0)])) == (
        "every group was solved: the advantages of this step come from penalties or are made up"
    )


def test_a_step_with_one_mixed_group_needs_no_sentence():
    assert describe(group_metrics([right_group(), group("m", [completion(1.0), completion(0.0)])])) is None


def test_sampling_is_measured_over_all_groups_and_training_under_names_of_its_own():
    a, b, c = example()
    metrics = step_metrics([a], [b, c], version=4)
    everything = group_metrics([a, b, c], version=4)
    assert {name: metrics[name] for name in everything} == everything
    # Of group a alone: rewards 1, 0 and a missing one; 2 + 4 + 9 tokens, one completion of three cut off.
    assert metrics["trained/reward/mean"] == 0.5 and metrics["trained/length/mean"] == 5
    assert metrics["trained/stop/length"] == pytest.approx(1 / 3)
    assert metrics["trained/count/groups"] == 1 and metrics["trained/count/sampled_tokens"] == 15
    assert set(metrics) - set(everything) == {f"trained/{name}" for name in TRAINED}


def test_a_source_that_never_chooses_has_no_metrics_of_the_trained_groups():
    assert step_metrics(example(), None, version=4) == group_metrics(example(), version=4)
