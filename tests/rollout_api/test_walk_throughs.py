"""docs/coming-from.md: the three walk-throughs of Atropos's trainer, terminal by terminal, as they stand on the page.

What is changed is what a machine without a GPU or a network needs: the model, the rows, ports, folders and sizes.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from test_cross_pairs import QUIET, left_over, process, steps_of, wait_until_served
from transformers import AutoTokenizer

from shoal.network import free_port
from shoal.tasks.story import story_rows
from shoal.tasks.warm_start import warm_started_model

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]
pytest.importorskip("vllm", reason="vLLM is not installed")
pytest.importorskip("wandb", reason="wandb is not installed")

PAGE = (Path(__file__).parents[2] / "docs" / "coming-from.md").read_text(encoding="utf-8")
MODES = dict(re.findall(r"### Mode (\d): .*?```bash\n(.*?)```", PAGE, flags=re.DOTALL))
MODEL, BRIDGE, ENGINE = "Qwen/Qwen2.5-3B-Instruct", "/tmp/shoal_bridge", "127.0.0.1:9001"
STEPS, EVERY = 4, 2


def terminals(block: str) -> list[list[str]]:
    """The words of each terminal's command."""
    return [shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines()]


def test_each_mode_has_its_terminals() -> None:
    programs = {mode: [words[:3] for words in terminals(block)] for mode, block in MODES.items()}
    api, env, trainer = ["shoal", "serve", "api"], ["shoal", "env", "gsm8k"], ["shoal", "train", "--config-name"]
    assert programs["1"] == programs["3"] == [api, env, trainer]
    assert programs["2"] == [api, ["shoal", "serve", "vllm"], env, trainer]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model with a chat template that leaves the system prompt out."""
    folder = tmp_path_factory.mktemp("model") / "model"
    shutil.copytree(warm_started_model(), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Problems of the built-in task, as GSM8K's file has its own."""
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    made = [{"question": row["question"], "answer": f"#### {row['answer']}"} for row in story_rows(evaluation=False)]
    file.write_text("".join(json.dumps(row) + "\n" for row in made[:200]))
    return file


def here(words: list[str], model: Path, rows: Path, folder: Path, ports: tuple[int, int]) -> list[str]:
    """A command of the page as this machine can run it."""
    api, engine = ports
    changes = {MODEL: str(model), BRIDGE: str(folder / "bridge"), ENGINE: f"127.0.0.1:{engine}"}
    changes |= {"9001": str(engine), "run.steps=100": f"run.steps={STEPS}"}
    changes |= {f"weight_sync.every={every}": f"weight_sync.every={EVERY}" for every in (10, 20)}
    for old, new in changes.items():
        words = [re.sub(rf"{re.escape(old)}\b", new, word) for word in words]
    small = ["data.max_prompt_tokens=64", "sampling.max_new_tokens=24"]
    task = [f"data.path={rows}", *small]
    url = f"http://127.0.0.1:{api}"
    added: dict[str, list[str]] = {
        "serve api": ["--port", str(api), "--store", str(folder / "groups.sqlite")],
        "serve vllm": ["--dtype", "float32", "--cache-gib", "0.25", "--max-model-len", "128"],
        "env gsm8k": ["--api", url, *task, "environment.timeout=300"],
        "train --config-name": [f"source.url={url}", *task, *QUIET, f"run.root={folder}", "run.name=run"],
    }
    added["train --config-name"] += [
        "evaluation.at_end=false",
        "engine.vllm.cache_gib=0.25",
        "engine.vllm.dtype=float32",
    ]
    added["train --config-name"] += ["runtime.mixed_precision=none", "optimizer.lr=1e-3", "monitor.wandb.mode=offline"]
    return [sys.executable, "-m", "shoal.cli", *words[1:], *added[" ".join(words[1:3])]]


@pytest.mark.parametrize("mode", MODES)
def test_a_walk_through_trains(mode: str, model: Path, rows: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    monkeypatch.delenv("LOGDIR", raising=False)
    ports = free_port("127.0.0.1"), free_port("127.0.0.1")
    commands = terminals(MODES[mode])
    logs = [tmp_path / f"terminal_{number}.log" for number in range(1, len(commands) + 1)]
    with ExitStack() as running:
        # One after the other without a pause, as an impatient person would: each waits for those that it needs. Only a
        # server that was started by hand must be there before the trainer is.
        started = []
        for words, log in zip(commands, logs, strict=True):
            started.append(running.enter_context(process(here(words, model, rows, tmp_path, ports), log)))
            if words[1:3] == ["serve", "vllm"]:
                wait_until_served(f"http://127.0.0.1:{ports[1]}/health", started[-1], log)
        *others, trainer = started
        assert trainer.wait(600) == 0, logs[-1].read_text()[-3000:]
        assert others[-1].wait(60) == 0, logs[-2].read_text()[-3000:]
    trained = steps_of(tmp_path / "run")
    assert [row["step"] for row in trained] == list(range(1, STEPS + 1))
    every = 1 if mode == "2" else EVERY
    assert [row["step"] for row in trained if row.get("seconds/sync_swap")] == list(range(every, STEPS + 1, every))
    # Two batches may be under way, of weights that may be as old as the last sync.
    assert all(0 <= row["staleness/max"] <= 2 + every for row in trained)
    assert trained[0]["sampler/abs_difference"] < 1e-4
    assert any(row["train/grad_norm"] > 0 for row in trained), "no group had two different rewards"
    assert list((tmp_path / "run").rglob("offline-run-*"))
    assert not left_over(tmp_path / "run")
