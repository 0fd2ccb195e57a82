"""A model that starts from nothing learns to call a tool, to read what it says and to answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from shoal.monitor.rows import read_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

START, END = "<|im_start|>", "<|im_end|>"
CALL = '<tool_call>{"name": "calculator", "arguments": {"expression": "3+4"}}</tool_call>'
ROLES = ("user\n", "assistant\n", "tool\n")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STEPS = 30


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A random Qwen3 of two layers. A whole call is one id of its tokenizer, so that chance makes some."""
    words = [START, END, *ROLES, CALL, "3", "7"]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="3"))
    known = r"<\|im_start\|>|<\|im_end\|>|user\n|assistant\n|tool\n|<tool_call>.*?</tool_call>|[\s\S]"
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(known), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, clean_up_tokenization_spaces=False)
    made.add_special_tokens({"additional_special_tokens": [START]})
    made.chat_template = TEMPLATE
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        random = Qwen3ForCausalLM(
            Qwen3Config(vocab_size=len(words), intermediate_size=128, head_dim=32, eos_token_id=1, **sizes)
        )
    folder = tmp_path / "model"
    random.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def train(model: Path, folder: Path, *words: str) -> list[dict[str, Any]]:
    """The rows of a run with the calculator, in which an answer is right only if its last calls were good ones."""
    prompts = ["3", "7", "33", "37", "73", "77", "333", "777"]
    rows = [{"prompt": prompt, "ground_truth": "7", "verifiers": ["gsm8k"]} for prompt in prompts]
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
