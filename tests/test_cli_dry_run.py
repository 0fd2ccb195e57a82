"""`--dry-run`: the resolved configuration, the device plan and the memory estimate, and nothing started or written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, Qwen2Config

from shoal.cli.command import main
from shoal.config.root import ShoalConfig

LASTING = ("weights", "optimizer", "engine", "process")
TRAINING = ("gradients", "activations", "logits")


def test_a_dry_run_prints_what_would_run_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))
    assert main(["train", "--dry-run", "algorithm=dapo", "runtime.target=cpu", "sampling.max_new_tokens=100"]) == 0
    text, _, plan = capsys.readouterr().out.partition("\nDevice plan\n")
    printed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ShoalConfig), OmegaConf.create(text)))
    assert isinstance(printed, ShoalConfig)
    assert (printed.algorithm.clip_high, printed.algorithm.overlong.buffer) == (0.28, 20)
    assert "device             cpu" in plan
    lines = dict(line.split() for line in plan.partition("Memory estimate (MiB)\n")[2].splitlines())
    # The built-in model has 0.41M parameters, so two float32 moments of Adam take 3.1 MiB.
    assert float(lines["optimizer"]) == pytest.approx(3.1, abs=0.1)
    lasting, training = (sum(float(lines[part]) for part in parts) for parts in (LASTING, TRAINING))
    # Decoding and training take turns.
    assert float(lines["peak"]) == pytest.approx(lasting + max(training, float(lines["kv_cache"])), abs=0.5)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_a_sweep_shows_every_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--dry-run", "--multirun", "run.seed=1,2"]) == 0
    printed = capsys.readouterr().out
    assert "# run.seed=1\n" in printed and "# run.seed=2\n" in printed
    assert printed.count("Memory estimate") == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_target_that_is_not_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--dry-run", "runtime.target=linux_gpu"]) == 2
    assert capsys.readouterr().err.startswith("shoal: error: runtime.target=linux_gpu: torch sees no CUDA device")


def test_a_dry_run_names_the_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    there = ["runtime.target=cpu", "algorithm.kl_coef=0.1", "reference.kind=vllm_launch", "engine.vllm.servers=2"]
    assert main(["train", "--dry-run", "engine=vllm_server", "weight_sync=broadcast", *there]) == 0
    said = capsys.readouterr().out
    assert "2 vLLM server(s) on 127.0.0.1, free ports: weights and 1 GiB of KV cache each" in said
    assert "reference          vLLM on 127.0.0.1, a free port (vllm_launch)" in said


def test_a_dry_run_says_what_ray_would_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    keys = ["learner=deepspeed", "engine=vllm_server", "weight_sync=broadcast", "runtime.target=cpu"]
    assert main(["train", "--dry-run", *keys, "cluster=debug_single_node", "learner.zero_stage=3"]) == 0
    said = capsys.readouterr().out
    assert "learner            ranks of DeepSpeed: [1] on each node, ZeRO stage 3" in said
    assert "cluster            1 node(s) of Ray, [3] engines on each" in said
    assert "engine             vLLM servers on nodes, free ports: weights and 1 GiB of KV cache each" in said


@pytest.mark.parametrize("name", ["debug_0.5b", "rlzero_7b_math"])
def test_the_presets_for_a_cluster_run_dry_on_a_local_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"a": 0, "b": 1}, "a")), eos_token="b"
    ).save_pretrained(model)
    shape = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32768}
    Qwen2Config(**shape, **heads, architectures=["Qwen2ForCausalLM"]).save_pretrained(model)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "1?", "answer": "#### 1", "problem": "1?", "solution": "\\\\boxed{1}"}\n')
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))
    words = [f"model={model}", f"data.path={rows}", "runtime.target=cpu"]
    assert main(["train", "--config-name", name, "--dry-run", *words]) == 0
    printed = capsys.readouterr().out
    nodes = "1 node(s) of Ray" if name == "debug_0.5b" else "all node(s) of Ray"
    assert "ranks of DeepSpeed: [1] on each node" in printed and "[3] engines on each" in printed
    assert nodes in printed and "peak" in printed
