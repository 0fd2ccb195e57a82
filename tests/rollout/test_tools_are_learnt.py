"""A model that starts from nothing learns to call a tool, to read what it says and to answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from rollout.calling_model import PROMPTS, save_calling_model

from shoal.monitor.rows import read_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 30


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_calling_model(tmp_path / "model")


def train(model: Path, folder: Path, *words: str) -> list[dict[str, Any]]:
    """The rows of a run with the calculator, in which an answer is right only if its last calls were good ones."""
    rows = [{"prompt": prompt, "ground_truth": "7", "verifiers": ["gsm8k"]} for prompt in PROMPTS]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "shoal.cli", "train", *words]
    command += [f"model.name={model}", "data.task=messages", f"data.path={folder / 'rows.jsonl'}"]
    command += ["environment.tools=[calculator]", "environment.max_turns=2", "reward.only_good_outputs=true"]
    command += [f"run.steps={STEPS}", "run.prompts_per_step=8", "run.group_size=16", "sampling.max_new_tokens=40"]
    command += ["optimizer.lr=2e-3", "optimizer.scheduler=constant", "run.preflight=false", "checkpoint.every=0"]
    command += ["monitor.progress=lines", f"run.root={folder}", "run.name=run"]
    done = subprocess.run(
        [*command, "runtime.target=cpu", "runtime.threads=1", "runtime.mixed_precision=none"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return read_rows(folder / "run")


def assert_learnt(rows: list[dict[str, Any]]) -> None:
    steps = [row for row in rows if "count/completions" in row]
    assert len(steps) == STEPS
    rewards = [row["reward/mean"] for row in steps]
    assert mean(rewards[:3]) < 0.3 and mean(rewards[-5:]) > 0.8
    # What the tool said stands between two turns: masked, but in the context of what follows.
    differences = [row.get("sampler/abs_difference", 0.0) for row in steps if row["staleness/max"] == 0]
    assert 0 < max(differences) < 1e-4


VLLM = ["engine.vllm.cache_gib=0.25", "weight_sync=broadcast"]
ENGINES = {"torch": [], "vllm": ["engine=vllm", *VLLM], "vllm_server": ["engine=vllm_server", *VLLM]}


@pytest.mark.parametrize(
    "engine",
    ["torch", pytest.param("vllm", marks=pytest.mark.vllm), pytest.param("vllm_server", marks=pytest.mark.vllm)],
)
def test_a_model_learns_to_call_a_tool_in_plain_training_and_its_evaluation_has_the_tool(
    model: Path, tmp_path: Path, engine: str
):
    if engine != "torch":
        pytest.importorskip("vllm", reason="needs vLLM")
    data = f"data.eval_path={tmp_path / 'rows.jsonl'}"
    evaluation = ["evaluation.every=0", "evaluation.at_end=true"]
    rows = train(model, tmp_path, "environment=tools", data, *evaluation, *ENGINES[engine])
    assert_learnt(rows)
    accuracies = [value for row in rows for key, value in row.items() if key.endswith("/accuracy")]
    assert accuracies[0] < 0.4 and accuracies[-1] > 0.8


def test_a_model_learns_to_call_a_tool_of_an_environment_in_another_process(model: Path, tmp_path: Path):
    quiet = ["evaluation.every=0", "evaluation.at_start=false", "evaluation.at_end=false"]
    served = ["source.url=http://127.0.0.1:0", "engine.serve_port=0"]
    assert_learnt(train(model, tmp_path, "--config-name", "story_api", *quiet, *served))
