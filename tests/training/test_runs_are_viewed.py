"""What `shoal view` tells of a run is what the run measured: their numbers come from different places."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_runs import Configure, trained_rows

from shoal.api import train
from shoal.monitor.rows import read_rows
from shoal.view.answers import answer
from shoal.view.runs import Runs


def test_the_view_of_a_run_agrees_with_its_metrics(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))
    train(configure("run.steps=4", "run.prompts_per_step=4", "monitor.tokens=true"), tmp_path / "run")
    runs = Runs([tmp_path / "run"])

    def told(name: str, **given: str) -> dict:
        return json.loads(json.dumps(answer(runs, name, {"run": "run", **given})))

    rows = trained_rows(tmp_path / "run")
    steps = told("steps")
    assert steps["steps"] == [row["step"] for row in rows]
    for row, groups in zip(rows, steps["groups"], strict=True):
        scored = [cell for cell in groups if cell[0] != "mis"]
        for outcome, metric in (("rig", "all_right"), ("wro", "all_wrong")):
            share = sum(cell[0] == outcome for cell in scored) / len(scored)
            assert share == pytest.approx(row[f"groups/{metric}"])
        completions = sum(cell[3] for cell in groups)
        assert completions == row["count/completions"]
        mean = sum(cell[1] * cell[3] for cell in groups) / completions
        assert mean == pytest.approx(row["reward/mean"], abs=1e-3)
        length = sum(cell[4] * cell[3] for cell in groups) / completions
        assert length == pytest.approx(row["length/mean"], abs=1e-3)
    evaluated = told("evaluations")
    accuracies = {row["step"]: row["eval/accuracy"] for row in read_rows(tmp_path / "run") if "eval/accuracy" in row}
    assert evaluated["steps"] == sorted(accuracies)
    for place, step in enumerate(evaluated["steps"]):
        cells = [prompt["cells"][place] for prompt in evaluated["prompts"]]
        assert sum(cell[1] for cell in cells) / sum(cell[2] for cell in cells) == pytest.approx(accuracies[step])
    group = told("group", step="2", group="1")
    for completion in group["completions"]:
        assert completion["messages" if completion["index"] == 0 else "tokens"]
        gaps = zip(completion["tokens"]["sampler"], completion["tokens"]["learner"], strict=True)
        largest = max(abs(sampler - learner) for sampler, learner in gaps)
        assert largest <= rows[1]["sampler/abs_difference_max"] + 1e-4
    assert told("overview")["status"] == "finished"
    assert told("configuration")["settings"]["monitor.tokens"] is True
