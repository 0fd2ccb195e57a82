"""Completions of one prompt are decoded as one until they differ, and nobody can tell."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from engine_models import build, completed, make_requests
from hypothesis import given
from hypothesis import strategies as st

from shoal.engines.base import SamplingParams
from shoal.engines.builtin.engine import TorchEngine
from shoal.engines.builtin.lanes import compact, fork

# At a low temperature completions of a group begin alike.
ALIKE = SamplingParams(16, temperature=0.03)


def engine_for(model: Any, tokenizer: Any, **options: Any) -> TorchEngine:
    engine = TorchEngine(model, tokenizer, **{"max_batch": 64, **options})
    engine.refresh(0)
    return engine


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=24),
    st.lists(st.integers(1, 6), min_size=24, max_size=24),
    st.integers(1, 4),
    st.booleans(),
)
def test_a_lane_holds_the_tokens_of_each_of_its_completions(
    completions: list[list[int]], ends: list[int], multiple: int, compacting: bool
) -> None:
    """Plays the cache with lists: every lane's history must be that of all the living completions in it."""
    rows, capacity = len(completions), len(completions)
    tokens = np.array(completions)
    living = np.ones(rows, dtype=bool)
    lanes, size = np.zeros(rows, dtype=np.int64), 1
    cache: list[list[int]] = [[] for _ in range(capacity)]
    for step in range(tokens.shape[1]):
        forked = fork(lanes, tokens[:, step], living, size, multiple=multiple, capacity=capacity)
        arrangements = [] if forked is None else [forked]
        if compacting:
            now, used = (lanes, size) if forked is None else (forked.lanes, forked.size)
            arrangements.append(compact(now, living, used, multiple=multiple))
        for arranged in arrangements:
            for source, target in zip(arranged.sources, arranged.targets, strict=True):
                cache[target] = list(cache[source])
            lanes, size = arranged.lanes, arranged.size
        assert size <= capacity
        parts = {(int(lane), int(token)) for lane, token in zip(lanes[living], tokens[living, step], strict=True)}
        assert len(parts) == len({lane for lane, _ in parts}), "one lane, two newest tokens"
        distinct = {tuple(row[: step + 1]) for row, alive in zip(completions, living, strict=True) if alive}
        assert len(parts) == len(distinct), "equal completions in two lanes"
        if compacting:
            assert size < len(parts) + multiple
        for lane, token in parts:
            cache[lane].append(token)
        for row in np.flatnonzero(living):
            assert cache[lanes[row]] == completions[row][: step + 1]
        living &= np.array(ends[:rows]) > step + 1
        if not living.any():
            return


def test_nothing_is_arranged_while_no_completions_differ() -> None:
    lanes, living = np.array([0, 0, 1, 2]), np.array([True, True, True, False])
    assert fork(lanes, np.array([5, 5, 7, 8]), living, 3, capacity=4) is None


def test_a_completion_that_differs_takes_an_idle_lane_first_and_then_a_new_one() -> None:
    lanes, living = np.array([0, 0, 0, 1, 2]), np.array([True, True, True, False, True])
    forked = fork(lanes, np.array([5, 6, 7, 9, 9]), living, 3, capacity=8, multiple=2)
    assert forked is not None
    # 5 keeps lane 0; 6 takes lane 1, whose completion is dead; 7 a new one, 3; four is a multiple of two.
    assert forked.lanes.tolist() == [0, 1, 3, 0, 2]
    assert (forked.sources.tolist(), forked.targets.tolist(), forked.size) == ([0, 0], [1, 3], 4)


@pytest.mark.parametrize("name", ["qwen3", "gemma", "mistral", "gpt2"])
@pytest.mark.parametrize("options", [{}, {"max_batch": 5}, {"max_batch": 20, "max_cache_tokens": 200}])
def test_completions_that_begin_alike_are_what_each_is_alone(
    name: str, options: dict[str, int], tokenizer: Any
) -> None:
    model = build(name)
    requests = make_requests(3, 8, ALIKE)
    together = engine_for(model, tokenizer, **options)
    found = together.generate(requests)
    statistics = together.statistics()
    alone = engine_for(model, tokenizer, max_batch=1).generate(requests)
    assert [output.token_ids for output in found] == [output.token_ids for output in alone]
    for one, other in zip(found, alone, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)  # 1 / .03 of rounding
    assert statistics["mean_lanes"] < statistics["mean_rows"]


def test_a_greedy_group_takes_one_lane(qwen: Any, tokenizer: Any) -> None:
    engine = engine_for(qwen, tokenizer)
    outputs = engine.generate(make_requests(1, 8, SamplingParams(12, temperature=0)))
    assert all(output.token_ids == outputs[0].token_ids for output in outputs)
    assert engine.statistics()["mean_lanes"] == 1


def test_completions_in_one_lane_are_aborted_one_by_one(qwen: Any, tokenizer: Any) -> None:
    engine = engine_for(qwen, tokenizer)
    requests = make_requests(1, 4, SamplingParams(12, temperature=0))
    engine.submit(requests)
    for _ in range(5):
        engine._step()
    engine.abort([requests[0].id, requests[2].id])
    outputs = {output.request_id: output for output in completed(engine)}
    whole, part = outputs[requests[1].id], outputs[requests[0].id]
    assert whole.token_ids == outputs[requests[3].id].token_ids
    assert len(part.token_ids) < len(whole.token_ids)
    assert part.token_ids == whole.token_ids[: len(part.token_ids)]


def test_completions_with_different_ends_share_a_lane_for_as_long_as_both_run(qwen: Any, tokenizer: Any) -> None:
    engine = engine_for(qwen, tokenizer)
    short, long = make_requests(1, 2, SamplingParams(12, temperature=0))
    short = replace(short, sampling=SamplingParams(4, temperature=0))
    outputs = engine.generate([short, long])
    assert outputs[0].token_ids == outputs[1].token_ids[:4]
    assert engine.statistics()["mean_lanes"] == 1
