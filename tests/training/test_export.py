"""A checkpoint becomes a model, and is evaluated as one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_runs import Configure, weights

from shoal import evaluate, train
from shoal.cli.command import main
from shoal.errors import TrainingError
from shoal.run_folder import load_saved
from shoal.training.export import export


@pytest.mark.parametrize("kind", [(), ("model.train=lora", "model.lora.r=2")])
def test_the_last_checkpoint_exports_to_the_very_model_that_the_run_wrote(
    configure: Configure, tmp_path: Path, kind: tuple[str, ...], capsys: pytest.CaptureFixture[str]
):
    train(configure("run.steps=4", "evaluation.at_start=false", *kind), tmp_path / "run")
    capsys.readouterr()
    assert main(["export", str(tmp_path / "run")]) == 0
    made = Path(capsys.readouterr().out.strip())
    assert made == tmp_path / "run" / "model_step_4"
    [exported] = made.glob("*.safetensors")
    assert exported.read_bytes() == weights(tmp_path / "run")
    assert main(["export", str(tmp_path / "run" / "checkpoints" / "step_2"), "--output", str(tmp_path / "two")]) == 0
    [earlier] = (tmp_path / "two").glob("*.safetensors")
    assert earlier.read_bytes() != exported.read_bytes()


def test_a_checkpoint_is_evaluated_like_the_model_of_its_step_and_its_completions_can_be_kept(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    train(configure("run.steps=2"), tmp_path / "run")
    wanted = evaluate(load_saved(tmp_path / "run", [f"model.name={tmp_path / 'run' / 'model'}"]))
    capsys.readouterr()
    words = [f"model={tmp_path / 'run' / 'checkpoints' / 'step_2'}", "--save", str(tmp_path / "kept.jsonl")]
    assert main(["eval", *words]) == 0
    out = capsys.readouterr().out
    assert f"accuracy: {wanted['accuracy']:.4f}\n" in out and "accuracy_stderr: " in out
    assert "prompts: 6\ncompletions: 6\n" in out
    rows = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    assert {"prompt", "text", "reward", "ground_truth", "stop_reason"} <= rows[0].keys()
    sample = json.loads((tmp_path / "run" / "samples" / "step_1.jsonl").read_text().splitlines()[0])
    assert rows[0].keys() == sample.keys()


def test_what_is_no_checkpoint_is_one_line(configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train(configure("run.steps=2"), tmp_path / "run")
    capsys.readouterr()
    assert main(["export", str(tmp_path / "run" / "checkpoints" / "step_7")]) == 2
    assert "no such checkpoint; there are step_2" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "nowhere")]) == 2
    other = load_saved(tmp_path / "run", ["model.train=lora"])
    with pytest.raises(TrainingError, match="is of another model"):
        export(other, tmp_path / "run" / "checkpoints" / "step_2", tmp_path / "never")
    assert not (tmp_path / "never").exists()
