"""What the tests of the keys share beside fixtures: small settings, groups and rewards made by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import Qwen3ForCausalLM

from shoal.algorithms.batch import make_batch
from shoal.config import ShoalConfig
from shoal.rewards.base import Submission
from shoal.tasks.story import story_tokenizer
from shoal.tasks.warm_start import Recipe, architecture
from shoal.types import Batch, Completion, Group, Prompt, Segment, StopReason

SMALL: dict[str, Any] = {
    "run.steps": 2,
    "run.prompts_per_step": 2,
    "run.group_size": 2,
    "run.preflight": False,
    "runtime.target": "cpu",
    "runtime.mixed_precision": "none",
    "runtime.threads": 1,
    "runtime.tune_malloc": False,
    "optimizer.lr": 1e-2,
    "sampling.max_new_tokens": 6,
    "evaluation.at_start": False,
    "evaluation.at_end": False,
    "evaluation.prompts": 3,
    "checkpoint.every": 0,
    "checkpoint.keep_best": False,
    "checkpoint.save_final": False,
    "monitor.progress": "off",
    "monitor.tensorboard": False,
    "monitor.curve": False,
    "monitor.samples_every": 0,
    "weight_sync.timeout": 15.0,
}
"""A run of some ten milliseconds a step that writes metrics.jsonl only."""

VOCABULARY = len(story_tokenizer())
HIDDEN = 16
LENGTHS = ((3, 5, 6), (4, 2, 3))
REWARDS = ((1.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def save_tiny_model(folder: Path, *, layers: int = 2, seed: int = 0) -> Path:
    """A random Qwen3 whose words are far from equally likely, with the story task's tokenizer."""
    tokenizer = story_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        recipe = Recipe(layers=layers, hidden=HIDDEN, heads=2, kv_heads=1, head_dim=8, ffn=32, init_std=0.3)
        model = Qwen3ForCausalLM(architecture(recipe, tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def by_length(submission: Submission) -> float:
    """A reward that differs within most groups of a random model."""
    return float(len(submission.text))


def always_one(submission: Submission) -> float:
    return 1.0


def made_groups() -> list[Group]:
    """Two groups of three completions, of LENGTHS tokens and with REWARDS; the longest one is truncated."""
    random = Random(0)
    groups = []
    for number, (lengths, rewards) in enumerate(zip(LENGTHS, REWARDS, strict=True)):
        context = [random.randrange(VOCABULARY) for _ in range(5)]
        completions = []
        for length, reward in zip(lengths, rewards, strict=True):
            ids = [random.randrange(VOCABULARY) for _ in range(length)]
            sampled = [-3 + random.random() for _ in range(length)]
            reason = StopReason.LENGTH if length == 6 else StopReason.STOP
            segment = Segment(context, ids, sampled, [True] * length)
            completions.append(Completion([segment], reason, text=f"text {number}", reward=reward))
        groups.append(Group(f"group {number}", completions, Prompt(f"group {number}", context, ground_truth="4")))
    return groups


def made_batch(cfg: ShoalConfig) -> Batch:
    """The batch of `made_groups` under a configuration."""
    return make_batch(
        made_groups(),
        cfg.algorithm,
        temperature=cfg.sampling.temperature,
        max_new_tokens=cfg.sampling.max_new_tokens,
        made_up=cfg.run.made_up_advantages,
    )[0]


def one_group(*texts: str, ground_truth: str = "4") -> Group:
    """A group of finished completions with these texts, unscored."""
    completions = [Completion([Segment([1], [2], [0.0], [True])], StopReason.STOP, text=text) for text in texts]
    return Group("p", completions, Prompt("p", [1], ground_truth=ground_truth))


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl."""
    return read_jsonl(folder / "metrics.jsonl")


def read_jsonl(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def write_jsonl(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def sampled_ids(groups: list[Group]) -> list[list[list[int]]]:
    """Sampled ids of each completion of each group."""
    return [[completion.segments[0].sampled_ids for completion in group.completions] for group in groups]


@contextmanager
def counted_calls(module: Any) -> Iterator[list[int]]:
    """Counts the forward passes of a torch module, those broken off included: the list gets an entry for each."""
    calls: list[int] = []
    handle = module.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        yield calls
    finally:
        handle.remove()
