"""Keys of `monitor` and `monitor.wandb`."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from effects.made import made_groups
from effects.registry import effect
from shoal.config import ShoalConfig
from shoal.monitor.monitor import Monitor

# Not inside the tests: `settings` would find that they changed nothing.
needs_wandb = pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")


@pytest.fixture
def monitored(settings, tmp_path):
    """The folder that a monitor of two steps leaves behind, under changed keys."""

    def run(changes: dict[str, object]) -> Path:
        return two_steps(settings(changes), tmp_path / f"folder_{len(list(tmp_path.glob('folder_*')))}")

    return run


def two_steps(cfg: ShoalConfig, folder: Path) -> Path:
    monitor = Monitor(cfg, folder, total_steps=2)
    for step in (1, 2):
        monitor.record(step, made_groups(), {})
    monitor.close("finished")
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@effect("monitor.progress")
def test_progress_is_shown_live_in_lines_or_not_at_all(settings, monitored, capsys):
    def shown(mode: str) -> str:
        monitored({"monitor.progress": mode})
        return capsys.readouterr().err

    assert shown("off") == ""
    lines = shown("lines")
    assert "reward" in lines and "━" not in lines
    # Under a test stderr is no terminal.
    assert shown("auto").splitlines()[0].split()[:2] == lines.splitlines()[0].split()[:2]
    assert "━" in shown("live"), "the bar"


@effect("monitor.tensorboard")
def test_tensorboards_events_are_written_where_asked(settings, monitored):
    assert names(monitored({})) == {"metrics.jsonl"}
    folder = monitored({"monitor.tensorboard": True})
    assert list((folder / "tensorboard").glob("events.*"))


@effect("monitor.curve")
def test_the_curve_is_drawn_where_asked(settings, monitored):
    assert names(monitored({"monitor.curve": True})) == {"metrics.jsonl", "curve.png"}
    assert names(monitored({"monitor.curve": False})) == {"metrics.jsonl"}


@effect("monitor.samples_every")
def test_samples_are_written_every_so_many_steps(settings, monitored):
    for every, files in {0: set(), 1: {"step_1.jsonl", "step_2.jsonl"}, 2: {"step_2.jsonl"}}.items():
        folder = monitored({"monitor.samples_every": every})
        assert {path.name for path in folder.glob("samples/*")} == files


@effect("monitor.tokens")
def test_tokens_are_written_with_the_log_probs_of_sampler_and_learner_where_asked(settings, trained):
    def rows(tokens: bool) -> list[dict[str, Any]]:
        folder = trained(settings({"monitor.samples_every": 1, "monitor.tokens": tokens}))
        return [json.loads(line) for line in (folder / "samples" / "step_1.jsonl").read_text().splitlines()]

    assert all("tokens" not in row for row in rows(False))
    for row in rows(True):
        tokens = row["tokens"]
        for name in ("text", "sampler", "learner", "mask"):
            assert len(tokens[name]) == row["length"], name
        assert tokens["learner"] == pytest.approx(tokens["sampler"], abs=1e-3)
        assert "".join(tokens["text"]) == row["text"]


@pytest.mark.extras
@needs_wandb
@effect("monitor.wandb.enabled")
def test_wandb_gets_the_run_where_asked(settings, monitored, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    offline = {"monitor.wandb.mode": "offline"}
    assert names(monitored(offline)) == {"metrics.jsonl"}
    folder = monitored({**offline, "monitor.wandb.enabled": True})
    assert list(folder.glob("wandb/offline-run-*/run-*.wandb"))


class FakeRun:
    """What `wandb.init` gives, as far as the writer uses it."""

    def define_metric(self, *args: Any, **kwargs: Any) -> None: ...
    def log(self, row: dict[str, float]) -> None: ...
    def finish(self, exit_code: int) -> None: ...


@pytest.mark.extras
@needs_wandb
@effect(
    "monitor.wandb.project",
    "monitor.wandb.entity",
    "monitor.wandb.group",
    "monitor.wandb.name",
    "monitor.wandb.mode",
)
def test_wandb_is_told_where_the_run_belongs(settings, monitored, monkeypatch):
    # Team and online mode need an account: the call that leaves Shoal is looked at instead.
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr("wandb.init", lambda **arguments: calls.append(arguments) or FakeRun())

    def told(changes: dict[str, str]) -> dict[str, Any]:
        folder = monitored({"monitor.wandb.enabled": True, **{f"monitor.wandb.{k}": v for k, v in changes.items()}})
        name = "FOLDER" if calls[-1]["name"] == folder.name else calls[-1]["name"]
        return {**{key: calls[-1][key] for key in ("project", "entity", "group", "mode")}, "name": name}

    defaults = {"project": "shoal", "entity": None, "group": None, "name": "FOLDER", "mode": "online"}
    assert told({}) == defaults
    for key, value in {"project": "p", "entity": "team", "group": "g", "name": "n", "mode": "offline"}.items():
        assert told({key: value}) == {**defaults, key: value}
