"""Decoding by Shoal's engine against Hugging Face's `generate`, on the default task's shape.

The same model, prompts, lengths and threads, interleaved in one process. Both sample at temperature 1; `generate` runs
its batch until the longest completion ends. `--model random` has random weights: completions of a group part at their
first token and end at random, at three ids of the vocabulary. `--model story` is the default task's own, before RL, on
its own prompts: completions of a group begin alike, as a trained model's do, which Shoal's engine makes use of.
Prints each run's seconds and tokens per second, and the median ratio for each pair, by the clock and by CPU time: on
a machine that does other things too, the latter says more.

    python benchmarks/decode.py --runs 7
    python benchmarks/decode.py --runs 7 --model story
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from random import Random
from statistics import median
from time import perf_counter, process_time
from types import SimpleNamespace
from typing import Any

import torch
from story_shape import VOCABULARY, story_shaped_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from shoal import load_config
from shoal.config.nodes.runtime import RuntimeConfig
from shoal.engines.base import Request, SamplingParams
from shoal.engines.builtin.engine import TorchEngine
from shoal.runtime import prepare_process, tune_malloc
from shoal.tasks.dataset import build_task
from shoal.tasks.stream import PromptStream
from shoal.tasks.warm_start import warm_started_model

WARM_UP = 3  # runs before the clock counts: caches fill and kernels are made for the shapes that occur
PROMPTS, GROUP, NEW_TOKENS = 32, 8, 40
EOS = [1, 2, 3]  # random weights give each id about 1/104: completions of 24 tokens on average, as the default task's


@dataclass
class Work:
    """What is decoded: a float32 model, the ids that end a completion, and the prompts."""

    model: Any
    ends: list[int]
    prompts: list[list[int]]


def random_work() -> Work:
    """The default task's architecture with random weights, 0.41M parameters, and random prompts."""
    random = Random(0)
    prompts = [[random.randrange(4, VOCABULARY) for _ in range(random.randint(16, 20))] for _ in range(PROMPTS)]
    return Work(story_shaped_model(eos_token_id=EOS, pad_token_id=0).eval(), EOS, prompts)


def story_work() -> Work:
    """The default task's warm-started model and its first prompts."""
    folder = warm_started_model()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    stream = PromptStream(build_task(load_config("story"), tokenizer).train, seed=0, shuffle=True)
    prompts = [list(prompt.token_ids) for prompt, _ in stream.next(PROMPTS)]
    return Work(AutoModelForCausalLM.from_pretrained(folder).eval(), [tokenizer.eos_token_id], prompts)


def engine_run(work: Work, compute_dtype: torch.dtype | None) -> Callable[[int], int]:
    """Returns a function that decodes all prompts once and counts the tokens."""
    tokenizer = SimpleNamespace(eos_token_id=work.ends[0])
    engine = TorchEngine(work.model, tokenizer, max_batch=256, compute_dtype=compute_dtype)

    def run(seed: int) -> int:
        engine.refresh(seed)  # as in training: the weights have changed since
        requests = [
            Request(f"{row}/{i}", tuple(prompt), 1000 * seed + GROUP * row + i, SamplingParams(NEW_TOKENS), str(row))
            for row, prompt in enumerate(work.prompts)
            for i in range(GROUP)
        ]
        return sum(len(output.token_ids) for output in engine.generate(requests))

    return run


def generate_run(work: Work, dtype: torch.dtype) -> Callable[[int], int]:
    """The same by `generate`: every prompt repeated, padded on the left."""
    model = deepcopy(work.model).to(dtype)
    prompts = [prompt for prompt in work.prompts for _ in range(GROUP)]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])

    def run(seed: int) -> int:
        torch.manual_seed(seed)
        sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": NEW_TOKENS}
        out = model.generate(ids, attention_mask=mask, pad_token_id=0, **sampling)[:, width:]
        ends = torch.isin(out, torch.tensor(work.ends))
        ended = ends.int().cumsum(-1)
        return int(((ended == 0) | ((ended == 1) & ends)).sum())

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description="Shoal's engine against generate")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", choices=("random", "story"), default="random")
    arguments = parser.parse_args()
    prepare_process(RuntimeConfig(threads=arguments.threads))
    tune_malloc()
    work = random_work() if arguments.model == "random" else story_work()
    # The allocator settings are the process's, so that both have them.
    contestants = {
        "generate float32": generate_run(work, torch.float32),
        "generate bfloat16": generate_run(work, torch.bfloat16),
        "shoal float32": engine_run(work, None),
        "shoal bfloat16 products": engine_run(work, torch.bfloat16),
    }
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    cpu_rates: dict[str, list[float]] = {name: [] for name in contestants}
    for seed in range(WARM_UP + arguments.runs):
        for name, run in contestants.items():
            start, cpu = perf_counter(), process_time()
            tokens = run(seed)
            elapsed, cpu = perf_counter() - start, process_time() - cpu
            if seed >= WARM_UP:
                rates[name].append(tokens / elapsed)
                cpu_rates[name].append(tokens / cpu)
                speed = f"{tokens:6d} tokens {tokens / elapsed:9.0f} tokens/s"
                print(f"run {seed - WARM_UP + 1} {name:24s} {elapsed:7.3f} s {speed}")
    for ours in ("shoal float32", "shoal bfloat16 products"):
        for theirs in ("generate float32", "generate bfloat16"):
            wall, cpu = (
                median(mine / other for mine, other in zip(found[ours], found[theirs], strict=True))
                for found in (rates, cpu_rates)
            )
            print(f"{ours} against {theirs}: {wall:.2f} times the tokens per second ({cpu:.2f} by CPU time)")


if __name__ == "__main__":
    main()
