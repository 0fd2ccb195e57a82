"""Keys of `engine`: bounds that change the work and not the completions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stub_vllm import StubVllm, stub_vllm

from effects.made import metrics_of, sampled_ids
from effects.registry import effect
from shoal.build import build_processes
from shoal.engines.base import Request, SamplingParams
from shoal.engines.processes.engine import EngineProcess, ProcessArguments, ProcessEngine
from shoal.errors import ConfigError, EngineError


@effect("engine.kind")
def test_an_engine_of_another_process_cannot_share_the_learners_module(settings):
    settings({"engine.kind": "torch"})
    with pytest.raises(ConfigError, match="the nearest combination that works has weight_sync=broadcast"):
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


@pytest.fixture
def stub() -> Iterator[StubVllm]:
    with stub_vllm() as found:
        yield found


@pytest.fixture
def open_processes(
    settings: Any, make_learner: Any, stub: StubVllm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[dict[str, Any]], tuple[ProcessEngine, list[ProcessArguments]]]]:
    """An engine whose processes are one stub, and what they were started with."""
    opened: list[ProcessEngine] = []

    def make(changes: dict[str, Any]) -> tuple[ProcessEngine, list[ProcessArguments]]:
        started: list[ProcessArguments] = []

        class Recorded(EngineProcess):
            """A launch that is written down instead of done."""

            url = stub.url
            process_started = False

            def launch(self, arguments: Any) -> None:
                started.append(ProcessArguments.from_text(arguments[0].removeprefix("--settings=")))
                if self.process_started:
                    stub.generate = "answer"
                self.process_started = True

            def wait_until_healthy(self) -> None:
                pass

        monkeypatch.setattr("shoal.engines.processes.engine.EngineProcess", Recorded)
        cfg = settings({"engine.processes": 1, "weight_sync.kind": "broadcast", **changes})
        learner = make_learner(cfg)
        opened.append(build_processes(cfg, learner.info, learner.runtime, tmp_path))
        return opened[-1], started

    yield make
    for engine in opened:
        engine.close()


@pytest.mark.slow
def test_a_run_has_the_metrics_of_one_in_the_learners_process(settings, trained):
    def numbers(changes: dict[str, Any]) -> list[dict[str, Any]]:
        rows = metrics_of(trained(settings({"evaluation.at_end": True, **changes})))
        told = ("seconds", "memory", "engine/", "sync/", "per_second", "time")
        return [{name: value for name, value in row.items() if not any(word in name for word in told)} for row in rows]

    alone = numbers({})
    assert len(alone) > 1
    for kind in ("broadcast", "shared"):
        assert numbers({"engine.processes": 1, "weight_sync.kind": kind, "weight_sync.timeout": 120.0}) == alone


def two_requests() -> list[Request]:
    return [Request(name, (1, 2), 0, SamplingParams(4), "one group") for name in "ab"]


@effect("engine.processes", "engine.threads")
def test_so_many_processes_sample_with_so_many_threads_each(settings, open_processes):
    for processes, threads in ((1, 1), (3, 2)):
        engine, started = open_processes({"engine.processes": processes, "engine.threads": threads})
        assert [one.threads for one in started] == [threads] * processes
        assert len(engine.replicas) == processes


@effect("engine.timeout")
def test_processes_that_give_nothing_are_given_up(settings, open_processes, stub):
    stub.generate = "hang"
    assert open_processes({"engine.timeout": 500.0})[0].timeout == 500
    engine, _ = open_processes({"engine.timeout": 1.0})
    with pytest.raises(EngineError, match=r"no completion within 1 s .* raise engine\.timeout"):
        engine.generate(two_requests())


@effect("engine.restarts")
def test_processes_are_started_again_so_often(settings, open_processes, stub):
    for restarts in (0, 1):
        stub.generate = "break"
        engine, started = open_processes({"engine.restarts": restarts})
        if restarts:
            assert [one.token_ids for one in engine.generate(two_requests())] == [[1], [1]]
            assert len(started) == 2
        else:
            with pytest.raises(EngineError, match=r"engine\.restarts are used up"):
                engine.generate(two_requests())


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"engine.processes": 2}, "set weight_sync=broadcast, or engine.processes=0"),
        ({"weight_sync.kind": "broadcast"}, "weight_sync=in_place, or engine.processes=1"),
        ({"weight_sync.kind": "restart", "engine.processes": 1}, "the nearest combination that works has"),
        (
            {"engine.kind": "vllm_server", "weight_sync.kind": "broadcast", "engine.processes": 1},
            "engine.vllm.servers counts the servers",
        ),
    ],
)
def test_what_processes_do_not_go_together_with_is_refused(settings, changes, line):
    with pytest.raises(ConfigError, match=line):
        settings(changes)
