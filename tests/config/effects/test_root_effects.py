"""The root's own keys."""

from __future__ import annotations

from contextlib import nullcontext

from effects.made import metrics_of
from effects.registry import effect
from shoal.api import train


@effect("resume")
def test_resume_goes_on_with_a_run_where_it_stopped(settings, trained):
    first = trained(settings({"checkpoint.every": 2}))
    again = trained(settings({"checkpoint.every": 2, "run.steps": 3}))
    assert [row["step"] for row in metrics_of(again)] == [1, 2, 3]
    before = metrics_of(first)

    summary = train(settings({"resume": str(first), "run.steps": 3}))
    assert metrics_of(first)[:2] == before, "the steps that were done are not done again"
    assert [row["step"] for row in metrics_of(first)] == [1, 2, 3]
    assert summary["resume_count"] == 1


@effect("resume")
def test_resume_latest_finds_the_run_under_the_root(settings, tmp_path):
    train(settings({"run.name": "mine", "checkpoint.every": 1}))
    assert train(settings({"resume": "latest", "run.steps": 4}))["steps"] == 4
    assert [row["step"] for row in metrics_of(tmp_path / "outputs" / "mine")] == [1, 2, 3, 4]


@effect("view")
def test_view_shows_the_run_while_it_runs(settings, trained, monkeypatch):
    shown = []
    monkeypatch.setattr("shoal.api.view_beside", lambda folder, say: nullcontext(shown.append(folder)))
    trained(settings({"view": False}))
    assert shown == []
    folder = trained(settings({"view": True}))
    assert shown == [folder]
