"""Keys of `weight_sync`."""

from __future__ import annotations

import pytest

from effects.made import metrics_of
from effects.registry import effect
from shoal.errors import ConfigError, TrainingError


@effect("weight_sync.kind")
def test_another_kind_of_weight_sync_is_refused(settings):
    # There is one kind so far.
    settings({"weight_sync.kind": "in_place"})
    with pytest.raises(ConfigError, match=r"weight_sync\.kind=broadcast: the nearest choice is 'in_place'"):
        settings({"weight_sync.kind": "broadcast"})


@effect("weight_sync.self_check_every")
def test_the_self_check_runs_at_every_so_many_syncs(settings, trained):
    # The first sync, before step 1, is always checked and has no row.
    for every, checked in {0: [], 2: [2, 4], 10: []}.items():
        rows = metrics_of(trained(settings({"weight_sync.self_check_every": every, "run.steps": 4})))
        assert [row["step"] for row in rows if "seconds/sync_self_check" in row] == checked


@effect("weight_sync.self_check_tolerance")
def test_the_tolerance_decides_what_the_self_check_refuses(settings, open_run):
    largest = max(open_run(settings()).parts.sync.check.differences())
    assert 0 < largest < 1e-4, "engine and learner differ by rounding, which the default allows"
    with pytest.raises(TrainingError, match="the engine's log-probs differ from the learner's"):
        open_run(settings({"weight_sync.self_check_tolerance": largest / 2}))
    open_run(settings({"weight_sync.self_check_tolerance": 11 * largest}))
