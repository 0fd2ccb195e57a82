"""Keys of `weight_sync`."""

from __future__ import annotations

from typing import Any

import pytest
from recorded_vllm import RecordedEngine, RecordedVllm
from worker_here import WorkerHere

from effects.made import metrics_of
from effects.registry import effect
from shoal.errors import EngineError, TrainingError
from shoal.types import Segment
from shoal.weight_sync.build import build_server_sync, servers_of
from shoal.weight_sync.check import SelfCheck
from shoal.weight_sync.servers import ServerSync
from shoal.wire.shared import Bridge

INTO_VLLM = {"engine.kind": "vllm_server", "weight_sync.kind": "restart"}


@pytest.fixture
def open_sync(settings, make_learner, tmp_path):
    """A weight sync into a vLLM that writes down what it is asked."""

    def make(changes: dict[str, Any]) -> ServerSync:
        cfg = settings(changes)
        learner = make_learner(cfg)
        probe = [Segment([3, 4, 5], [6, 7], [0.0, 0.0], [True, True])]
        engine: Any = RecordedEngine(RecordedVllm(learner))
        check = SelfCheck(engine, learner, probe, every=1, tolerance=1e-4)
        return build_server_sync(cfg, learner, engine, check, tmp_path)

    return make


@effect("weight_sync.kind")
def test_the_kind_decides_how_weights_reach_the_engine(settings, open_sync):
    restart = open_sync(INTO_VLLM)
    assert restart.publish(0).wait() and restart.publish(1).wait()
    assert [path.name for path in restart.engine.replicas[0].all("restart")] == ["version_1"]
    broadcast = open_sync({**INTO_VLLM, "weight_sync.kind": "broadcast", "weight_sync.timeout": 1.0})
    with pytest.raises(EngineError, match="weight_sync=broadcast: no group of 2 on"):
        broadcast.publish(1)


@effect("weight_sync.every")
def test_between_publications_the_engine_stays_at_the_older_version(settings, open_sync):
    for every, held in {1: [0, 1, 2, 3, 4], 2: [0, 0, 2, 2, 4]}.items():
        sync = open_sync({**INTO_VLLM, "weight_sync.every": every})
        assert [sync.publish(version).version for version in range(5)] == held
        assert sync.publish(5, now=True).version == sync.engine.version == 5


@effect("weight_sync.in_flight")
def test_requests_in_flight_are_treated_as_asked(settings, open_sync):
    for mode in ("drain", "abort"):
        sync = open_sync({**INTO_VLLM, "weight_sync.in_flight": mode})
        sync.publish(0).wait()
        assert sync.engine.replicas[0].all("pause") == [mode]


@effect("weight_sync.host", "weight_sync.timeout")
def test_a_broadcast_waits_for_workers_at_its_address_and_no_longer_than_told(settings, open_sync):
    for host, seconds in (("127.0.0.1", 1.0), ("127.0.0.2", 2.0)):
        changes = {"weight_sync.kind": "broadcast", "weight_sync.host": host, "weight_sync.timeout": seconds}
        sync = open_sync({**INTO_VLLM, **changes})
        # The learner's own wait ends at the same moment; whichever is first is told.
        told = rf"no word after {seconds:g} s from|the learner: wait timeout after {1000 * seconds:.0f}ms"
        with pytest.raises(EngineError, match=rf"no group of 2 on {host}:\d+: ({told})"):
            sync.publish(0)


@effect("weight_sync.delta", "weight_sync.full_every")
def test_only_what_has_changed_is_sent_between_the_updates_that_send_all(settings, make_learner, tmp_path):
    def sent(changes: dict[str, Any]) -> list[float]:
        bf16 = {"model.dtype": "bfloat16", "optimizer.lr": 1e-5, "weight_sync.kind": "broadcast"}
        cfg = settings({**bf16, "engine.processes": 1, **changes})
        learner = make_learner(cfg)
        engine: Any = RecordedEngine(WorkerHere(learner))
        check = SelfCheck(engine, learner, [Segment([3, 4], [5], [0.0], [True])], every=0, tolerance=1e-4)
        sync = build_server_sync(cfg, learner, engine, check, tmp_path)
        found = []
        for version in range(5):
            sync.publish(version).wait()
            found.append(sync.metrics()["full"])
        return found

    assert sent({}) == [1, 1, 1, 1, 1]
    assert sent({"weight_sync.delta": True}) == [1, 0, 0, 0, 0]
    assert sent({"weight_sync.delta": True, "weight_sync.full_every": 2}) == [1, 0, 1, 0, 1]


@effect("weight_sync.bridge")
def test_the_bridge_of_a_server_started_by_hand_is_found_where_it_was_said(settings, tmp_path):
    Bridge("a model", "cpu", {}, {}, url="http://127.0.0.1:7").write(tmp_path)
    shared = {"engine.kind": "vllm_server", "weight_sync.kind": "shared"}
    assert servers_of(settings(shared)).endpoints == []
    assert servers_of(settings({**shared, "weight_sync.bridge": str(tmp_path)})).endpoints == ["http://127.0.0.1:7"]


@effect("weight_sync.self_check_every")
def test_the_self_check_runs_at_every_so_many_syncs(settings, trained):
    # The first sync, before step 1, is always checked and has no row.
    for every, checked in {0: [1], 2: [1, 2, 4], 10: [1]}.items():
        rows = metrics_of(trained(settings({"weight_sync.self_check_every": every, "run.steps": 4})))
        assert [row["step"] for row in rows if "seconds/sync_self_check" in row] == checked


@effect("weight_sync.self_check_tolerance")
def test_the_tolerance_decides_what_the_self_check_refuses(settings, open_run):
    largest = max(open_run(settings()).parts.sync.check.differences())
    assert 0 < largest < 1e-4, "engine and learner differ by rounding, which the default allows"
    with pytest.raises(TrainingError, match="the engine's log-probs differ from the learner's"):
        open_run(settings({"weight_sync.self_check_tolerance": largest / 2}))
    open_run(settings({"weight_sync.self_check_tolerance": 11 * largest}))
