from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.algorithms import batch as batch_module
from shoal.algorithms.batch import make_batch, overlong_penalty, token_weights
from shoal.config.nodes.algorithm import AlgorithmConfig, OverlongConfig
from shoal.errors import DataError
from shoal.types import Completion, Group, Segment, StopReason, TrainSequence

LIMIT = 8
CENTERED = {"advantage": "centered"}


def completion(reward, length=2, stop=StopReason.STOP, **fields):
    segment = Segment([1, 2], list(range(3, 3 + length)), [-1.0] * length, [True] * length)
    return Completion(**{"segments": [segment], "stop_reason": stop, "reward": reward, **fields})


def group(*completions, name="g"):
    return Group(name, list(completions))


def batch_of(*groups: Group, made_up: bool = False, **options):
    return make_batch(groups, AlgorithmConfig(**options), temperature=0.7, max_new_tokens=LIMIT, made_up=made_up)


def advantages_of(sequences: Sequence):
    return [sequence.advantages.tolist() for sequence in sequences]


def test_token_weights_are_summed_once(monkeypatch: pytest.MonkeyPatch):
    sums = []

    def counted(values: Any) -> Any:
        sums.append(1)
        return sum(values)

    monkeypatch.setattr(batch_module, "sum", counted, raising=False)
    many = [
        TrainSequence(number, 0, np.arange(3), 1, np.ones(2, bool), np.zeros(2, np.float32), np.zeros(2), 2)
        for number in range(100)
    ]
    found = token_weights(many, "token", 4)
    assert len(sums) == 1 and all((row == 1 / 200).all() for row in found)


def test_a_batch_holds_the_sampled_ids_as_they_are():
    one = completion(1.0, length=3)
    one.segments[0].mask = [True, False, True]
    one.segments[0].ref_logprobs = [-2.0, -3.0, -4.0]
    batch, report = batch_of(group(one, completion(0.0)), **CENTERED)
    first, second = batch.sequences
    assert (first.ids.tolist(), first.context, first.mask.tolist()) == ([1, 2, 3, 4, 5], 2, [True, False, True])
    assert (first.completion, first.group, first.completion_tokens) == (0, 0, 2)
    assert first.ref_logprobs.tolist() == [-2, -3, -4] and second.ref_logprobs is None
    assert (first.ids.dtype, first.advantages.dtype, first.mask.dtype) == (np.int64, np.float64, np.bool_)
    assert (batch.completions, batch.trained_tokens, batch.temperature, batch.max_new_tokens) == (2, 4, 0.7, LIMIT)
    assert (report.groups, report.completions, report.positions) == (1, 2, [0, 1])


def test_advantages_come_from_the_whole_group_and_are_written_on_its_completions():
    one = group(completion(1.0), completion(0.0), completion(None), completion(2.0))
    batch, report = batch_of(one, **CENTERED)
    assert [each.advantage for each in one.completions] == [0, -1, None, 1]
    assert advantages_of(batch.sequences) == [[0, 0], [-1, -1], [1, 1]]
    assert (report.missing_rewards, report.zero_advantage, report.positions) == (1, 1, [0, 1, 3])


def test_a_missing_reward_is_not_a_zero():
    with_gap, _ = batch_of(group(completion(1.0), completion(None), completion(0.0)), **CENTERED)
    assert advantages_of(with_gap.sequences) == [[0.5, 0.5], [-0.5, -0.5]]


def test_groups_with_fewer_than_two_known_rewards_are_dropped_and_counted():
    lonely = group(completion(1.0), completion(None), name="lonely")
    batch, report = batch_of(lonely, group(completion(1.0), completion(0.0)))
    assert (report.dropped_groups, report.positions) == (1, [2, 3])
    assert [sequence.group for sequence in batch.sequences] == [0, 0]
    assert lonely.completions[0].advantage is None


@pytest.mark.parametrize("stop", [StopReason.ERROR, StopReason.ABORT])
def test_failed_completions_are_left_out_of_batch_and_statistics(stop):
    failed = completion(100.0, stop=stop)
    batch, report = batch_of(group(completion(1.0), failed, completion(0.0)), **CENTERED)
    assert advantages_of(batch.sequences) == [[0.5, 0.5], [-0.5, -0.5]]
    assert (report.failed, failed.advantage) == (1, None)


def test_masked_truncated_completions_count_in_their_group_only():
    long = completion(4.0, stop=StopReason.LENGTH)
    one = group(completion(1.0), completion(1.0), long)
    batch, report = batch_of(one, mask_truncated=True, **CENTERED)
    assert advantages_of(batch.sequences) == [[-1, -1], [-1, -1]]  # mean 2 over all three
    assert (batch.completions, report.masked_truncated, long.advantage) == (2, 1, 2.0)
    unmasked, report = batch_of(one, **CENTERED)
    assert (unmasked.completions, report.masked_truncated) == (3, 0)


def test_groups_of_equal_rewards_are_kept_or_dropped():
    equal, other = group(completion(1.0), completion(1.0)), group(completion(1.0), completion(0.0))
    kept, report = batch_of(equal, other)
    assert (kept.completions, report.zero_variance_groups, report.zero_variance_dropped) == (4, 1, 0)
    assert report.zero_advantage == 2
    dropped, report = batch_of(equal, other, zero_variance="drop")
    assert (dropped.completions, report.zero_variance_groups, report.zero_variance_dropped) == (2, 1, 1)
    assert report.metrics()["batch/zero_variance_dropped_groups"] == 0.5
    assert report.metrics()["batch/trained"] == 0.5


def test_made_up_advantages_alternate_only_where_all_rewards_are_equal():
    equal = group(completion(1.0), completion(1.0), completion(1.0))
    batch, report = batch_of(equal, group(completion(1.0), completion(0.0)), made_up=True, **CENTERED)
    assert [values[0] for values in advantages_of(batch.sequences)] == [1, -1, 1, 0.5, -0.5]
    assert [each.advantage for each in equal.completions] == [1, -1, 1]
    assert report.made_up_groups == 1


def test_a_group_without_a_completion_to_train_on_is_not_made_up():
    truncated = [completion(1.0, stop=StopReason.LENGTH) for _ in range(2)]
    batch, report = batch_of(group(*truncated), made_up=True, mask_truncated=True)
    assert (batch.completions, report.masked_truncated, report.made_up_groups) == (0, 2, 0)


def test_penalties_come_off_the_reward_before_the_statistics():
    one = group(completion(1.0, penalties={"kl": 0.5}), completion(1.0, penalties={"kl": 0.1}))
    batch, _ = batch_of(one, **CENTERED)
    assert [values[0] for values in advantages_of(batch.sequences)] == pytest.approx([-0.2, 0.2])
    assert [each.reward for each in one.completions] == [1.0, 1.0]


def test_the_overlong_penalty_rises_linearly_over_the_buffer():
    # limit 8, buffer 4, penalty 1: free up to 4 tokens, then a quarter for each
    overlong = OverlongConfig(penalty=1.0, buffer=4)
    penalties = [overlong_penalty(length, LIMIT, overlong) for length in (1, 4, 5, 6, 7, 8, 9)]
    assert penalties == [0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert [overlong_penalty(length, LIMIT, OverlongConfig(2.0, 0)) for length in (7, 8)] == [0, 2]


def test_the_overlong_penalty_is_recorded_and_not_taken_twice():
    one = group(completion(1.0, length=6), completion(1.0, length=2))
    for _ in range(2):
        batch, _ = batch_of(one, overlong=OverlongConfig(1.0, 4), **CENTERED)
        assert [each.penalties for each in one.completions] == [{"overlong": 0.5}, {"overlong": 0.0}]
        assert [values[0] for values in advantages_of(batch.sequences)] == [-0.25, 0.25]


def test_token_advantages_replace_the_groups_also_where_rewards_are_equal():
    own = completion(1.0)
    own.segments[0].advantages = [3.0, -1.0]
    batch, report = batch_of(group(own, completion(1.0)), zero_variance="drop")
    assert advantages_of(batch.sequences) == [[3, -1], [0, 0]]
    assert (own.advantage, report.zero_variance_groups) == (1.0, 0)


def test_a_segment_without_own_advantages_takes_the_groups():
    own = completion(1.0)
    own.segments += [Segment([1], [5], [-1.0], [True], advantages=[7.0])]
    batch, _ = batch_of(group(own, completion(0.0)), **CENTERED)
    assert advantages_of(batch.sequences) == [[0.5, 0.5], [7], [-0.5, -0.5]]
    assert own.advantage == pytest.approx(8 / 3)


def test_own_advantages_need_no_reward():
    own = completion(None)
    own.segments[0].advantages = [2.0, 2.0]
    batch, report = batch_of(group(own, completion(None)))
    assert advantages_of(batch.sequences) == [[2, 2]]
    assert report.dropped_groups == 0


def test_gspo_refuses_advantages_that_differ_within_a_completion():
    own = completion(1.0)
    own.segments[0].advantages = [3.0, -1.0]
    with pytest.raises(DataError, match=r"group g, completion 0.*gspo"):
        batch_of(group(own, completion(1.0)), surrogate="gspo")


def test_an_override_sets_the_advantage_to_zero_and_keeps_the_completion_in_the_normaliser():
    silenced = completion(2.0, overrides={"set_advantage_to_zero": True})
    batch, report = batch_of(group(silenced, completion(0.0)), **CENTERED)
    assert advantages_of(batch.sequences) == [[0, 0], [-1, -1]]
    assert (batch.completions, report.zero_advantage, silenced.advantage) == (2, 1, 0.0)


def test_an_override_does_not_revive_a_dropped_group():
    silenced = completion(None, overrides={"set_advantage_to_zero": True})
    batch, report = batch_of(group(silenced, completion(1.0)))
    assert (batch.completions, report.dropped_groups) == (0, 1)


def test_the_segments_of_a_completion_share_its_number_and_token_count():
    long = completion(1.0)
    tool_output = Segment([1], [9], [0.0], [False])
    long.segments += [Segment([1, 2, 3], [7, 8, 9], [-1.0] * 3, [True, False, True]), tool_output]
    batch, _ = batch_of(group(long, completion(0.0)))
    assert [(one.completion, one.completion_tokens) for one in batch.sequences] == [(0, 4), (0, 4), (1, 2)]


def test_a_completion_without_a_trained_token_is_left_out_and_counted():
    silent = completion(3.0)
    silent.segments[0].mask = [False, False]
    batch, report = batch_of(group(silent, completion(0.0), completion(0.0)), **CENTERED)
    assert advantages_of(batch.sequences) == [[-1, -1], [-1, -1]]
    assert (report.untrained, batch.completions) == (1, 2)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("logprobs", [-1.0], "1 logprobs for 2 sampled tokens"),
        ("mask", [True] * 3, "3 mask for 2"),
        ("ref_logprobs", [], "0 ref_logprobs for 2"),
        ("advantages", [1.0], "1 advantages for 2"),
        ("context_ids", [], "without context"),
    ],
)
def test_a_malformed_segment_is_refused_by_name(field, value, message):
    bad = completion(1.0)
    setattr(bad.segments[0], field, value)
    with pytest.raises(DataError, match=f"group g, completion 1: .*{message}"):
        batch_of(group(completion(0.0), bad))


@pytest.mark.parametrize("bad", [completion(float("nan")), completion(1.0, penalties={"kl": float("inf")})])
def test_a_reward_that_is_not_finite_is_refused_by_name(bad):
    with pytest.raises(DataError, match=r"group g, completion 1: .*not finite"):
        batch_of(group(completion(0.0), bad))


def test_no_groups_make_an_empty_batch():
    batch, report = batch_of()
    assert (batch.sequences, batch.completions, report.metrics()["batch/trained"]) == ([], 0, 0)


# --- normalisers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("token", [[1 / 4, 1 / 4, 1 / 4], [1 / 4, 0]]),
        ("sequence", [[1 / 6, 1 / 6, 1 / 6], [1 / 2, 0]]),
        ("constant", [[1 / 16, 1 / 16, 1 / 16], [1 / 16, 0]]),
    ],
)
def test_the_weights_of_each_aggregation(aggregation, expected):
    short = completion(0.0)
    short.segments[0].mask = [True, False]
    batch, _ = batch_of(group(completion(1.0, length=3), short))
    weights = token_weights(batch.sequences, aggregation, LIMIT)
    assert [one.tolist() for one in weights] == expected


def test_zero_advantage_completions_count_in_the_normaliser():
    batch, _ = batch_of(group(completion(1.0), completion(1.0)), group(completion(1.0), completion(0.0)))
    assert token_weights(batch.sequences, "token", LIMIT)[3].tolist() == [1 / 8, 1 / 8]


def test_the_segments_of_a_completion_share_its_mean():
    long = completion(1.0)
    long.segments += [Segment([1], [7, 8, 9], [-1.0] * 3, [True, False, True])]
    batch, _ = batch_of(group(long, completion(0.0)))
    weights = token_weights(batch.sequences, "sequence", LIMIT)
    assert [one.tolist() for one in weights] == [[1 / 8, 1 / 8], [1 / 8, 0, 1 / 8], [1 / 4, 1 / 4]]


@given(st.lists(st.integers(1, 7), min_size=2, max_size=6))
def test_the_weights_of_the_means_sum_to_one(lengths):
    rewards = range(len(lengths))
    batch, _ = batch_of(group(*[completion(float(r), length=n) for r, n in zip(rewards, lengths, strict=True)]))
    for aggregation in ("token", "sequence"):
        weights = token_weights(batch.sequences, aggregation, LIMIT)
        assert np.concatenate(weights).sum() == pytest.approx(1, rel=1e-12)


def test_a_completion_split_over_optimizer_steps_is_refused():
    long = completion(1.0)
    long.segments += [Segment([1], [7], [-1.0], [True])]
    batch, _ = batch_of(group(long, completion(0.0)))
    with pytest.raises(ValueError, match="completion 0 is split"):
        token_weights(batch.sequences[1:], "token", LIMIT)


def test_an_unknown_aggregation_is_refused():
    with pytest.raises(ValueError, match="median"):
        token_weights([], "median", LIMIT)


@pytest.mark.parametrize(
    ("rewards", "stop", "changes", "reason"),
    [
        ([1.0, None, 0.0], StopReason.STOP, {}, "its reward is missing"),
        ([1.0, 0.0, 0.5], StopReason.ERROR, {}, "stop reason error"),
        ([1.0, 0.0, 0.5], StopReason.LENGTH, {"mask_truncated": True}, "truncated"),
        ([None, 1.0, None], StopReason.STOP, {}, "fewer than two known rewards"),
        ([1.0, 1.0, 1.0], StopReason.STOP, {"zero_variance": "drop"}, "all rewards of its group are equal"),
    ],
)
def test_the_report_says_of_each_completion_that_is_left_out_why(rewards, stop, changes, reason):
    one = group(*(completion(reward) for reward in rewards))
    one.completions[1].stop_reason = stop
    _, report = batch_of(group(completion(0.0), completion(1.0)), one, **changes)
    assert sorted([*report.positions, *report.left_out]) == list(range(5)), "each is either in it or told of"
    assert reason in report.left_out[3]


def test_the_overlong_penalty_goes_by_the_positions_where_they_end_completions_first():
    """A context of 2 of 6 positions leaves 4 tokens; the token limit is 8."""
    config = AlgorithmConfig(overlong=OverlongConfig(penalty=1.0, buffer=2))

    def penalties(max_positions: int | None) -> list[float]:
        groups = [group(*(completion(1.0, length=length) for length in (2, 3, 4)))]
        make_batch(groups, config, temperature=1.0, max_new_tokens=LIMIT, max_positions=max_positions)
        return [one.penalties["overlong"] for one in groups[0].completions]

    assert penalties(None) == penalties(100) == [0, 0, 0]
    assert penalties(6) == [0, 0.5, 1]
