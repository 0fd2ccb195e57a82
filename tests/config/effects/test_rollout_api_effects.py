"""Keys of `source` and `engine` that say how groups come from environments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from small_api import SmallApi

from effects.made import by_length, metrics_of
from effects.registry import effect
from shoal.build import build_run
from shoal.errors import ConfigError, RolloutApiError
from shoal.run_folder import save_config
from shoal.training.sources import StoppedWaiting

API = {"source.kind": "rollout_api", "engine.serve_port": 0, "data.max_prompt_tokens": 64, "source.timeout": 15.0}


def wire_group(*lengths: int) -> dict[str, Any]:
    """A group with a context of two tokens and these numbers of sampled ones; the scores are 0, 1, 2, ..."""
    return {
        "tokens": [[5, 6, *range(7, 7 + length)] for length in lengths],
        "masks": [[-100, -100, *range(7, 7 + length)] for length in lengths],
        "scores": [float(score) for score in range(len(lengths))],
        "inference_logprobs": [[1.0, 1.0, *([-2.0] * length)] for length in lengths],
    }


def filled(*groups: dict[str, Any]) -> SmallApi:
    api = SmallApi()
    api.queue += groups
    return api


@effect("source.url")
def test_the_url_is_where_groups_come_from(settings, open_run):
    for sampled in (2, 3):
        with filled(wire_group(sampled, sampled), wire_group(1, 1)).served() as url:
            groups = open_run(settings({**API, "source.url": url})).source.next_groups(1)
        assert groups[0].completions[0].num_sampled == sampled


@effect("source.batch_size")
def test_a_batch_of_so_many_sequences_is_asked_for(settings, open_run):
    for wanted, asked in ((0, 4), (6, 6)):  # 0: two prompts of two completions
        api = filled(*[wire_group(2, 2)] * 3)
        with api.served() as url:
            open_run(settings({**API, "source.url": url, "source.batch_size": wanted})).source.next_groups(1)
        assert api.bodies("/register")[0]["batch_size"] == asked


@effect("source.seq_len", "source.overlong")
def test_sequences_above_seq_len_are_dropped_cut_or_masked(settings, open_run):
    def lengths(seq_len: int, overlong: str) -> list[list[int]]:
        """Trained tokens of each completion of each group, of sequences of 4, 6 and 3, 3 tokens."""
        with filled(wire_group(2, 4), wire_group(1, 1)).served() as url:
            changes = {**API, "source.url": url, "source.seq_len": seq_len, "source.overlong": overlong}
            source = open_run(settings(changes)).source
            groups = source.next_groups(1)
        assert source.metrics()["rollout_api/overlong"] == (seq_len == 5)
        return [[sum(completion.segments[0].mask) for completion in group.completions] for group in groups]

    assert lengths(6, "drop") == [[2, 4], [1, 1]]
    assert lengths(5, "drop") == [[1, 1]]
    assert lengths(5, "truncate") == [[2, 3], [1, 1]]
    assert lengths(5, "mask") == [[2, 0], [1, 1]]


@effect("source.max_unusable")
def test_a_share_of_unusable_groups_ends_the_run(settings, open_run):
    def fetch(max_unusable: float) -> list[int]:
        bad = {**wire_group(2, 2), "generation_params": {"temperature": "hot"}}
        with filled(*[bad, wire_group(2, 2)] * 10).served() as url:
            source = open_run(settings({**API, "source.url": url, "source.max_unusable": max_unusable})).source
            return [len(source.next_groups(step)) for step in range(1, 11)]

    assert fetch(0.5) == [1] * 10
    with pytest.raises(RolloutApiError, match=r"10 of the last 20 groups cannot be trained on"):
        fetch(0.4)


@effect("source.timeout")
def test_a_server_that_is_busy_is_waited_for_until_the_timeout(settings, open_run):
    def fetch(timeout: float) -> int:
        api = filled(wire_group(2, 2), wire_group(2, 2))
        api.busy = 8  # with pauses of 0.05 s and half as much more each time: 2.5 s
        with api.served() as url:
            return len(open_run(settings({**API, "source.url": url, "source.timeout": timeout})).source.next_groups(1))

    assert fetch(120.0) == 2
    with pytest.raises(RolloutApiError, match=r"is busy .* start it \(shoal serve api, or run-api\)"):
        fetch(1.0)


@effect("engine.serve_port")
def test_the_engine_is_served_on_the_port(settings, open_run):
    with SmallApi().served() as taken:
        port = int(taken.rpartition(":")[2])
        with pytest.raises(ConfigError, match=rf"port {port} cannot be served.*engine\.serve_port"):
            open_run(settings({**API, "engine.serve_port": port}))
    run = open_run(settings({**API, "engine.serve_port": 0}))
    health = httpx.get(f"{run.source.server.url}/health", trust_env=False).json()
    assert health["status"] == "ok" and health["version"] == 0


@effect("engine.serve_host")
def test_the_engine_is_served_at_the_host_and_publicly_only_with_a_token(settings, open_run, monkeypatch):
    assert open_run(settings(API)).source.server.url.startswith("http://127.0.0.1:")
    with pytest.raises(ConfigError, match=r"serve_host=0\.0\.0\.0 can be reached.*SHOAL_ENGINE_TOKEN"):
        open_run(settings({**API, "engine.serve_host": "0.0.0.0"}))
    monkeypatch.setenv("SHOAL_ENGINE_TOKEN", "secret")
    url = open_run(settings({**API, "engine.serve_host": "0.0.0.0"})).source.server.url
    assert url.startswith("http://0.0.0.0:")
    address = url.replace("0.0.0.0", "127.0.0.1")
    body = {"prompt": {"prompt_token_ids": [5]}}
    assert httpx.post(f"{address}/generate", json=body, trust_env=False).status_code == 401


@effect("source.kind")
def test_groups_from_a_server_are_trained_on(settings, trained):
    with filled(*[wire_group(2, 3)] * 4).served() as url:
        rows = metrics_of(trained(settings({**API, "source.url": url})))
    assert [row["reward/mean"] for row in rows] == [0.5, 0.5]
    assert [row["rollout_api/batches"] for row in rows] == [1, 1]
    assert all(row["train/tokens"] == 10 for row in rows)
    assert "rollout_api/batches" not in metrics_of(trained(settings()))[0]


@pytest.mark.slow
@effect("source.launch")
def test_a_server_and_an_environment_are_started_and_what_ails_them_is_told(
    settings, open_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        "shoal.build.check_names", lambda *_: None
    )  # it would find the name wrong before anything starts
    with pytest.raises(ConfigError, match=r"source\.launch=story starts an environment for source=rollout_api"):
        settings({"source.launch": "story"})
    run = open_run(
        settings(
            {
                **API,
                "source.timeout": 120.0,
                "source.url": "http://127.0.0.1:0",
                "source.launch": "no_such_module:Environment",
            }
        )
    )
    save_config(run.cfg, [], run.folder)
    with pytest.raises(
        RolloutApiError, match=r"no_such_module:Environment has ended with status 2: .*cannot be imported"
    ):
        run.source.next_groups(1)
    assert "rollout API: http://127.0.0.1:" in (run.folder / "logs" / "api.log").read_text()
    assert open_run(settings(API)).source.companions is None


def test_a_stop_is_heeded_while_a_batch_is_waited_for(settings, tmp_path: Path):
    with SmallApi().served() as url:
        run = build_run(settings({**API, "source.url": url}), tmp_path / "run", lambda: True, {"made": by_length})
        try:
            run.parts.sync.publish(0).wait()
            with pytest.raises(StoppedWaiting):
                run.source.next_groups(1)
        finally:
            run.close("stopped")


def test_zero_variance_groups_are_refilled_from_further_batches(settings, open_run):
    equal = {**wire_group(1, 1), "scores": [1.0, 1.0]}
    with filled(equal, wire_group(2, 2), equal, wire_group(3, 3)).served() as url:
        changes = {**API, "source.url": url, "algorithm.zero_variance": "refill"}
        source = open_run(settings(changes)).source
        groups = source.next_groups(1)
    assert [group.completions[0].num_sampled for group in groups] == [2, 3]
    assert source.metrics()["rollout_api/batches"] == 2
    assert [group.rewards for group in source.passed_over] == [[1.0, 1.0], [1.0, 1.0]]


def test_groups_dropped_for_their_length_count_in_what_was_sampled(settings, open_run):
    with filled(wire_group(9, 9), wire_group(2, 2)).served() as url:
        changes = {**API, "source.url": url, "source.seq_len": 5, "source.overlong": "drop"}
        source = open_run(settings(changes)).source
        groups = source.next_groups(1)
    assert [group.completions[0].num_sampled for group in groups] == [2]
    assert [group.completions[0].num_sampled for group in source.passed_over] == [9]


def test_a_replayed_journal_gives_what_was_fetched(settings, open_run, tmp_path: Path):
    """Beside the keys: what a kill between fetch and checkpoint leaves."""
    with filled(*[wire_group(2, 3)] * 4).served() as url:
        run = open_run(settings({**API, "source.url": url}))
        before = run.source.state_dict()
        first, second = run.source.next_groups(1), run.source.next_groups(2)
        run.source.load_state_dict(before)
        assert run.source.next_groups(1) == first and run.source.next_groups(2) == second
        assert run.source.metrics()["rollout_api/replayed"] == 1
