"""Keys of `engine`: bounds that change the work and not the completions."""

from __future__ import annotations

import pytest

from effects.made import sampled_ids
from effects.registry import effect
from shoal.errors import ConfigError


@effect("engine.kind")
def test_an_engine_of_another_process_cannot_share_the_learners_module(settings):
    settings({"engine.kind": "torch"})
    with pytest.raises(ConfigError, match="the nearest combination that works has engine=torch"):
        settings({"engine.kind": "vllm"})


@effect("engine.max_batch", "engine.max_cache_tokens")
def test_bounds_of_the_engine_spread_completions_over_more_steps(settings, open_run):
    def rollout(changes: dict[str, int]) -> tuple[list[list[list[int]]], float, float]:
        run = open_run(settings({"data.max_prompt_tokens": 30, **changes}))
        run.parts.engine.statistics()
        groups = run.source.next_groups(1)
        statistics = run.parts.engine.statistics()
        return sampled_ids(groups), statistics["steps"], statistics["mean_rows"]

    free, steps, rows = rollout({})
    # Room for one completion of a prompt of up to 30 tokens and 6 new ones.
    for bound in ({"engine.max_batch": 1}, {"engine.max_cache_tokens": 36}):
        bounded, more_steps, fewer_rows = rollout(bound)
        assert bounded == free
        assert fewer_rows == 1 < rows
        assert more_steps > steps
