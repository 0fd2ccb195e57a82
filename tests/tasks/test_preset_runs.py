"""The presets for real data, end to end: local rows, a tiny model, two steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from shoal.cli.command import main

pytestmark = pytest.mark.slow

WriteRows = Callable[..., str]

ROWS: dict[str, list[dict[str, Any]]] = {
    "gsm8k": [{"question": f"{n} and {n}?", "answer": f"{n}+{n}={2 * n}\n#### {2 * n}"} for n in range(6)],
    "math": [{"problem": f"${n}+x=7$?", "solution": f"$x=\\boxed{{{7 - n}}}$"} for n in range(6)],
    "ifeval": [
        {"prompt": f"Write {n} words.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
        for n in range(6)
    ],
    "code": [{"text": f"Add {n}.", "test_list": [f"assert add(1) == {n + 1}"]} for n in range(6)],
}


@pytest.fixture
def model(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> str:
    """A random model of two layers whose tokens are characters."""
    config = Qwen3Config(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        eos_token_id=3,
        pad_token_id=3,
        bos_token_id=None,
    )
    folder = tmp_path / "model"
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def smoke(tmp_path: Path, name: str, *words: str) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl of a smoke test."""
    command = ["train", "--config-name", name, "--smoke-test", f"run.root={tmp_path}", "run.name=run"]
    assert main([*command, "runtime.target=cpu", "runtime.threads=1", "data.max_prompt_tokens=512", *words]) == 0
    return [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_preset_trains_on_local_rows_of_its_layout(
    name: str, tmp_path: Path, model: str, write_rows: WriteRows, request: pytest.FixtureRequest
) -> None:
    if name == "code":
        request.getfixturevalue("bubblewrap")
    path = write_rows("rows.jsonl", ROWS[name])
    rows = smoke(tmp_path, name, f"model={model}", f"data.path={path}")
    trained = [row for row in rows if "count/completions" in row]
    assert [row["step"] for row in trained] == [1, 2]
    assert all(row["rewards/missing"] == 0 for row in trained)


def test_a_mix_trains_and_is_evaluated_source_by_source(tmp_path: Path, model: str, write_rows: WriteRows) -> None:
    words = []
    for name in ("gsm8k", "math"):
        path = write_rows(f"{name}.jsonl", ROWS[name])
        words.append(f"data.mix.{name}={{task: {name}, path: {path}, amount: 4}}")
    rows = smoke(tmp_path, "gsm8k", f"model={model}", *words, "data.shuffle=false")
    [evaluated, *_] = [row for row in rows if any(key.endswith("gsm8k/accuracy") for key in row)]
    assert any(key.endswith("math/accuracy") for key in evaluated)
    trained = [row for row in rows if "count/completions" in row]
    assert {key for key in trained[0] if key.startswith("source/")} == {"source/gsm8k/reward", "source/math/reward"}
    assert trained[0]["rewards/gsm8k/count"] == trained[0]["rewards/math/count"] == 2
