"""Groups on the wire, and what becomes of groups from any environment."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.algorithms.batch import make_batch
from shoal.config.nodes.algorithm import AlgorithmConfig
from shoal.engines.base import SamplingParams
from shoal.errors import DataError
from shoal.rollout_api.scored_data import to_group, to_scored_data
from shoal.rollout_api.trainer.overlong import fit
from shoal.types import Completion, Group, Prompt, Segment, StopReason

SAMPLING = SamplingParams(max_new_tokens=8, temperature=0.7)

# Two sequences of a foreign environment: prompts 5 6 and 5 6 7, a tool's output (8) in the second.
FOREIGN: dict[str, Any] = {
    "tokens": [[5, 6, 1, 2], [5, 6, 7, 3, 8, 4, 9]],
    "masks": [[-100, -100, 1, 2], [-100, -100, -100, 3, -100, 4, -100]],
    "scores": [1.0, 0.0],
    "inference_logprobs": [[1.0, 1.0, -0.1, -0.2], [1.0, 1.0, 1.0, -0.3, 1.0, -0.4, 1.0]],
}


def test_a_foreign_group_becomes_segments_from_the_first_to_the_last_trained_token():
    first, second = to_group(FOREIGN, "g", "env").completions
    assert first.segments == [Segment([5, 6], [1, 2], [-0.1, -0.2], [True, True])]
    # The tool's output stays in between, masked, its log-prob a 0 that nothing reads; the untrained tail goes.
    assert second.segments == [Segment([5, 6, 7], [3, 8, 4], [-0.3, 0.0, -0.4], [True, False, True])]
    assert (first.reward, second.reward) == (1.0, 0.0)
    assert first.versions == [] and first.first_version == -1


def test_contexts_that_differ_leave_a_group_without_a_prompt():
    group = to_group(FOREIGN, "g", "env")
    assert group.prompt is None and group.id == "g"
    alike = {**FOREIGN, "tokens": [[5, 6, 1], [5, 6, 2]], "masks": [[-100, -100, 1], [-100, -100, 2]]}
    alike["inference_logprobs"] = None
    prompt = to_group(alike, "g", "env").prompt
    assert prompt is not None and (prompt.token_ids, prompt.source) == ([5, 6], "env")


def test_a_first_token_cannot_be_trained():
    data = {**FOREIGN, "tokens": [[5, 6], [5, 6]], "masks": [[5, 6], [5, 6]], "inference_logprobs": None}
    assert to_group(data, "g", "env").completions[0].segments == [Segment([5], [6], [], [True])]


def test_what_the_environment_sends_beside_the_scores_arrives():
    data = {
        **FOREIGN,
        "advantages": [[0.0, 0.0, 0.5, -0.5], [0.0] * 3 + [1.0, 0.0, 2.0, 0.0]],
        "ref_logprobs": [[0.0, 0.0, -1.0, -2.0], [0.0] * 3 + [-3.0, 0.0, -4.0, 0.0]],
        "overrides": [{"set_advantage_to_zero": True}, {"temperature": 0.5}],
        "group_overrides": {"temperature": 2.0},
        "generation_params": {"weights_version": 7},
    }
    first, second = to_group(data, "g", "env").completions
    assert first.segments[0].advantages == [0.5, -0.5] and second.segments[0].advantages == [1.0, 0.0, 2.0]
    assert second.segments[0].ref_logprobs == [-3.0, 0.0, -4.0]
    assert first.overrides == {"set_advantage_to_zero": True, "temperature": 2.0}
    assert second.overrides == {"temperature": 0.5}
    assert first.versions == [(0, 7)]


def test_the_batch_has_the_environments_advantages_and_zeros_where_it_says_so():
    data = {**FOREIGN, "advantages": [[0.0, 0.0, 0.5, -0.5], [0.0] * 3 + [1.0, 0.0, 2.0, 0.0]]}
    data["overrides"] = [{}, {"set_advantage_to_zero": True, "temperature": 0.5}]
    batch, _ = make_batch([to_group(data, "g", "env")], AlgorithmConfig(), temperature=1.0, max_new_tokens=8)
    assert [sequence.advantages.tolist() for sequence in batch.sequences] == [[0.5, -0.5], [0.0, 0.0, 0.0]]
    assert [sequence.temperature for sequence in batch.sequences] == [None, 0.5]


def test_null_log_probs_leave_a_gap_for_the_learner():
    for missing in (None, [None, None]):
        group = to_group({**FOREIGN, "inference_logprobs": missing}, "g", "env")
        assert [completion.segments[0].logprobs for completion in group.completions] == [[], []]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [1.0]}, "2 tokens, 2 masks and 1 scores"),
        ({"tokens": [], "masks": [], "scores": []}, "0 tokens"),
        ({"masks": [[-100, -100, 1], FOREIGN["masks"][1]]}, "3 masks for 4 tokens"),
        ({"inference_logprobs": [[1.0], [1.0]]}, "1 inference_logprobs for 4 tokens"),
        ({"masks": [[0, 0, 1, 1], FOREIGN["masks"][1]]}, "0/1 masks"),
        ({"generation_params": {"temperature": 0}}, "greedy"),
    ],
)
def test_groups_that_cannot_be_read_say_why(change: dict[str, Any], message: str):
    with pytest.raises(DataError, match=message):
        to_group({**FOREIGN, **change}, "g", "env")


tokens = st.integers(0, 99)


@st.composite
def segments(draw: st.DrawFn) -> Segment:
    context = draw(st.lists(tokens, min_size=1, max_size=4))
    mask = [True, *draw(st.lists(st.booleans(), max_size=4)), True]
    sampled = draw(st.lists(tokens, min_size=len(mask), max_size=len(mask)))
    logprobs = [draw(st.floats(-9, 0)) if used else 0.0 for used in mask]
    return Segment(context, sampled, logprobs, mask)


@st.composite
def completions(draw: st.DrawFn) -> Completion:
    return Completion(
        draw(st.lists(segments(), min_size=1, max_size=3)),
        draw(st.sampled_from([StopReason.STOP, StopReason.LENGTH])),
        text=draw(st.text(min_size=1)),
        versions=[(0, draw(st.integers(0, 5)))],
        reward=draw(st.floats(-2, 2)),
        reward_parts={"exact": draw(st.floats(0, 1))},
    )


@given(st.lists(completions(), min_size=1, max_size=4))
def test_a_group_of_shoals_comes_back_as_it_was_sent_turns_and_all(made: list[Completion]):
    sent = Group("p/1", made, Prompt("p/1", [1], ground_truth="4", source="story"), epoch=3)
    data = to_scored_data(sent, SAMPLING, 0, "key")
    got = to_group(data, "other", "other")
    assert (got.id, got.epoch) == ("p/1", 3)
    for before, after in zip(made, got.completions, strict=True):
        assert after.segments == before.segments
        assert (after.reward, after.text, after.versions) == (before.reward, before.text, before.versions)
        assert (after.stop_reason, after.reward_parts) == (before.stop_reason, before.reward_parts)
        assert after.overrides == {"temperature": 0.7}


def test_overlong_sequences_are_cut_or_masked_and_their_rewards_stay():
    cut, masked = to_group(FOREIGN, "g", "env"), to_group(FOREIGN, "g", "env")
    assert fit(cut, 5, "truncate") == 1
    assert cut.completions[1].segments == [Segment([5, 6, 7], [3, 8], [-0.3, 0.0], [True, False])]
    assert fit(masked, 5, "mask") == 1
    assert masked.completions[1].segments[0].mask == [False, False, False]
    assert masked.rewards == [1.0, 0.0]
    assert masked.completions[0].segments[0].mask == [True, True]
    assert fit(to_group(FOREIGN, "g", "env"), 7, "drop") == 0
