"""Keys of `source`."""

from __future__ import annotations

import pytest

from effects.made import metrics_of, sampled_ids
from effects.registry import effect
from shoal.cli.forecast import forecast
from shoal.errors import TrainingError


@effect("source.kind", "source.path")
def test_replay_trains_on_the_groups_of_another_run(settings, trained, open_run):
    recorded = {
        seed: trained(settings({"run.record_groups": True, "run.seed": seed, "monitor.samples_every": 1}))
        for seed in (1, 2)
    }

    def first_step(changes: dict[str, object]) -> list[list[list[int]]]:
        return sampled_ids(open_run(settings(changes)).source.next_groups(1))

    fresh = first_step({})
    replays = [
        first_step({"source.kind": "replay", "source.path": str(folder)}) for folder in (recorded[1], recorded[2])
    ]
    assert fresh != replays[0] != replays[1]

    rows = metrics_of(trained(settings({"source.kind": "replay", "source.path": str(recorded[1])})))
    original = metrics_of(recorded[1])
    assert [row["reward/mean"] for row in rows] == [row["reward/mean"] for row in original]
    assert [row["loss/total"] for row in rows] == [row["loss/total"] for row in original]
    assert [row["engine/tokens"] for row in rows] == [0, 0]
    with pytest.raises(TrainingError, match="no groups recorded for step 3"):
        trained(settings({"source.kind": "replay", "source.path": str(recorded[1]), "run.steps": 3}))


FORECAST = {
    "source.kind": "async",
    "engine.kind": "vllm_server",
    "weight_sync.kind": "broadcast",
    "algorithm.correction": "token_truncate",
    "source.simulate.token_seconds": 0.1,
    "source.simulate.step_seconds": 10.0,
    "sampling.max_new_tokens": 4000,
}


@effect(
    "source.simulate.token_seconds",
    "source.simulate.tokens",
    "source.simulate.spread",
    "source.simulate.slow_share",
    "source.simulate.slow_factor",
    "source.simulate.step_seconds",
    "source.simulate.at_once",
)
def test_the_forecast_of_the_dry_run_heeds_each_of_its_times(settings):
    def seconds(**changes: float) -> float:
        config = settings(FORECAST | {f"source.simulate.{key}": value for key, value in changes.items()})
        return forecast(config, 0, 0, 1).seconds

    base = seconds()
    assert seconds(token_seconds=0.2) > base
    assert seconds(tokens=512) > base
    assert seconds(spread=0.0) < base
    assert seconds(slow_share=0.0) < base
    assert seconds(slow_factor=20.0) > base
    assert seconds(step_seconds=20.0) == pytest.approx(base + 300 * 10)
    assert seconds(at_once=2) > base  # one group at a time
