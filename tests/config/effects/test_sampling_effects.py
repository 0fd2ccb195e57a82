"""Keys of `sampling`, on what the engine samples."""

from __future__ import annotations

import pytest

from effects.registry import effect
from shoal.types import Completion, StopReason


@pytest.fixture
def sampled(settings, open_run):
    """The completions of one prompt under changed keys."""

    def roll_out(changes: dict[str, object]) -> list[Completion]:
        base = {"run.prompts_per_step": 1, "run.group_size": 16}
        (group,) = open_run(settings({**base, **changes})).source.next_groups(1)
        return group.completions

    return roll_out


def different(completions: list[Completion]) -> int:
    return len({tuple(one.segments[0].sampled_ids) for one in completions})


@effect("sampling.max_new_tokens")
def test_no_completion_is_longer_than_the_limit(settings, sampled):
    assert max(one.num_sampled for one in sampled({})) == 6
    short = sampled({"sampling.max_new_tokens": 3})
    assert max(one.num_sampled for one in short) == 3
    assert all(one.stop_reason is StopReason.LENGTH for one in short if one.num_sampled == 3)


@effect("sampling.temperature")
def test_a_low_temperature_samples_the_likeliest_tokens(settings, sampled):
    warm, cold = sampled({}), sampled({"sampling.temperature": 0.01})
    assert different(warm) > 8
    assert different(cold) == 1
    # Of the distribution that was sampled: nearly certain.
    assert sum(cold[0].segments[0].logprobs) > sum(
        max(warm, key=lambda one: sum(one.segments[0].logprobs)).segments[0].logprobs
    )


@effect("sampling.top_p", "sampling.top_k")
def test_top_p_and_top_k_narrow_the_choice(settings, sampled):
    free = {one.segments[0].sampled_ids[0] for one in sampled({})}
    assert len(free) > 2
    assert len({one.segments[0].sampled_ids[0] for one in sampled({"sampling.top_k": 2})}) <= 2
    assert different(sampled({"sampling.top_k": 1})) == 1
    assert different(sampled({"sampling.top_p": 1e-6})) == 1


@effect("sampling.stop")
def test_a_stop_string_ends_a_completion_and_stays_in_it(settings, sampled, open_run):
    decode = open_run(settings()).parts.decode
    longest = max(sampled({}), key=lambda one: one.num_sampled)
    third = decode(longest.segments[0].sampled_ids[2:3])
    before = decode(longest.segments[0].sampled_ids[:2])
    assert third and third not in before
    stopped = [one for one in sampled({"sampling.stop": [third]}) if one.text == before + third]
    assert stopped and all(one.stop_reason is StopReason.STOP and one.num_sampled == 3 for one in stopped)
