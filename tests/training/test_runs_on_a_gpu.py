"""Whole runs on a CUDA device; at tiny shapes on the CPU where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gpu_device import DEVICE, ON_CUDA
from small_runs import Configure, trained_rows
from transformers import Qwen3ForCausalLM

from shoal import load_config, train
from shoal.build import build_parts
from shoal.learners.memory_plan import estimate
from shoal.learners.passes import as_sequences
from shoal.models.info import read_info
from shoal.monitor.rows import read_rows
from shoal.runtime import resolve_runtime
from shoal.tasks.story import story_tokenizer
from shoal.tasks.warm_start import Recipe, architecture
from shoal.types import Batch, Segment

pytestmark = pytest.mark.gpu
ON_DEVICE = ("runtime.target=auto", f"runtime.device={DEVICE}")
BF16 = (*ON_DEVICE, "model.dtype=bfloat16", "runtime.mixed_precision=auto")
QWEN3_06B = {"layers": 28, "hidden": 1024, "heads": 16, "kv_heads": 8, "head_dim": 128, "ffn": 3072}
TINY = {"layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "ffn": 128}
IDS = 151_936 if ON_CUDA else 1_000
GIB = 2**30


@pytest.fixture(scope="module")
def shaped_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with random weights in Qwen3-0.6B's shape (on the CPU a tiny one) and the story task's tokenizer."""
    folder = tmp_path_factory.mktemp("shaped_model")
    tokenizer = story_tokenizer()
    config = architecture(Recipe(**(QWEN3_06B if ON_CUDA else TINY)), tokenizer)
    config.vocab_size, config.max_position_embeddings = IDS, 4096
    with torch.random.fork_rng(devices=[]), torch.device(DEVICE):
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_self_check_passes_in_bf16_after_every_step(configure: Configure) -> None:
    parts = build_parts(configure(*BF16), {})
    try:
        assert {one.dtype for one in parts.policy.model.parameters()} == {torch.bfloat16}
        check = parts.sync.check  # type: ignore[attr-defined]
        check.every = 1
        for version in range(3):
            assert "self_check" in parts.sync.publish(version).wait()
            assert parts.engine.version == version
            before = parts.learner.logprobs(check.probe)
            parts.learner.train(batch_of(check.probe), parts.sync)
            assert parts.learner.logprobs(check.probe) != before
    finally:
        parts.close()


def batch_of(segments: Sequence[Segment]) -> Batch:
    """The segments as completions of advantages 1 and -1 in turn."""
    signs = [1.0 - 2.0 * (number % 2) for number in range(len(segments))]
    sequences = [
        replace(one, advantages=np.full(len(one.mask), sign), completion_tokens=len(one.mask))
        for one, sign in zip(as_sequences(segments), signs, strict=True)
    ]
    return Batch(sequences, len(sequences), sum(len(one.mask) for one in sequences), 1.0, max_new_tokens=12)


def test_a_story_run_reaches_an_accuracy_of_80_percent(tmp_path: Path) -> None:
    steps = 60 if ON_CUDA else 30
    words = [*ON_DEVICE, f"run.steps={steps}", f"evaluation.every={steps}", "monitor.progress=lines"]
    summary = train(load_config("story", words), tmp_path / "run")
    assert summary["status"] == "finished"
    assert summary["accuracy_after"] >= 0.8 > summary["accuracy_before"]


@pytest.mark.parametrize("trained", ["full", "lora"])
def test_a_run_of_a_real_shape_stays_within_its_memory_plan(shaped_model: Path, tmp_path: Path, trained: str) -> None:
    words = [
        f"model.name={shaped_model}",
        *BF16,
        f"model.train={trained}",
        "run.made_up_advantages=true",
        "run.steps=2",
        "run.prompts_per_step=8",
        "run.group_size=8",
        f"sampling.max_new_tokens={256 if ON_CUDA else 16}",
        f"learner.micro_batch_tokens={8192 if ON_CUDA else 256}",
        "evaluation.every=0",
        "evaluation.at_start=false",
        "checkpoint.every=0",
        "monitor.progress=lines",
    ]
    cfg = load_config("story", words)
    plan = estimate(cfg, resolve_runtime(cfg.runtime, cfg.model), read_info(cfg.model))
    summary = train(cfg, tmp_path / "run")
    assert summary["status"] == "finished"
    rows = read_rows(tmp_path / "run")
    assert all(np.isfinite(row["train/grad_norm"]) for row in rows if "train/grad_norm" in row)
    model = Qwen3ForCausalLM.from_pretrained(shaped_model)
    parameters = sum(one.numel() for one in model.parameters())
    assert plan["weights"] == parameters * 2
    assert (plan["optimizer"] == parameters * 8) == (trained == "full")
    if ON_CUDA:
        peak = max(row["memory/cuda_peak_gib"] for row in rows if "memory/cuda_peak_gib" in row)
        assert 0.3 < peak * GIB / sum(plan.values()) <= 1.1


def test_a_run_on_a_gpu_goes_on_from_its_checkpoint(configure: Configure, tmp_path: Path) -> None:
    words = (*BF16, "checkpoint.every=2")
    train(configure(*words, "run.steps=4"), tmp_path / "whole")
    train(configure(*words, "run.steps=2"), tmp_path / "parted")
    summary = train(configure(*words, "run.steps=4", resume=tmp_path / "parted"))
    assert (summary["steps"], summary["resume_count"]) == (4, 1)
    whole, parted = (trained_rows(tmp_path / name) for name in ("whole", "parted"))
    assert [row["step"] for row in parted] == [row["step"] for row in whole] == [1, 2, 3, 4]
    # A GPU adds up in another order each time, so a completion may come out otherwise.
    if ON_CUDA:
        whole, parted = ([row["train/lr"] for row in some] for some in (whole, parted))
    assert parted == whole
