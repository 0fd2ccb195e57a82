"""Decoding by Shoal's engine against Hugging Face's `generate`, on the default task's shape.

The same model, prompts, lengths and threads, interleaved in one process. Both sample at temperature 1; `generate` runs
its batch until the longest completion ends. Completions end at random: three ids of the vocabulary end them.
Prints each run's seconds and tokens per second, and the median ratio for each pair, by the clock and by CPU time: on
a machine that does other things too, the latter says more.

    python benchmarks/decode.py --runs 7
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from random import Random
from statistics import median
from time import perf_counter, process_time
from types import SimpleNamespace

import torch
from story_shape import VOCABULARY, story_shaped_model
from transformers import Qwen3ForCausalLM

from shoal.config.runtime import RuntimeConfig
from shoal.engines.base import Request, SamplingParams
from shoal.engines.torch_engine import TorchEngine
from shoal.runtime import prepare_process

WARM_UP = 3  # runs before the clock counts: caches fill and kernels are made for the shapes that occur
PROMPTS, GROUP, NEW_TOKENS = 32, 8, 40
EOS = [1, 2, 3]  # random weights give each id about 1/104: completions of 24 tokens on average, as the default task's


def build_model(dtype: torch.dtype) -> Qwen3ForCausalLM:
    """The default task's architecture with random weights, 0.41M parameters."""
    return story_shaped_model(eos_token_id=EOS, pad_token_id=0).to(dtype).eval()


def make_prompts() -> list[list[int]]:
    random = Random(0)
    return [[random.randrange(4, VOCABULARY) for _ in range(random.randint(16, 20))] for _ in range(PROMPTS)]


def engine_run(model: Qwen3ForCausalLM, compute_dtype: torch.dtype | None) -> Callable[[int], int]:
    """Returns a function that decodes all prompts once and counts the tokens."""
    engine = TorchEngine(model, SimpleNamespace(eos_token_id=EOS[0]), max_batch=256, compute_dtype=compute_dtype)
    prompts = make_prompts()

    def run(seed: int) -> int:
        engine.refresh(seed)  # as in training: the weights have changed since
        requests = [
            Request(f"{row}/{i}", tuple(prompt), 1000 * seed + GROUP * row + i, SamplingParams(NEW_TOKENS), str(row))
            for row, prompt in enumerate(prompts)
            for i in range(GROUP)
        ]
        return sum(len(output.token_ids) for output in engine.generate(requests))

    return run


def generate_run(model: Qwen3ForCausalLM) -> Callable[[int], int]:
    """The same by `generate`: every prompt repeated, padded on the left."""
    prompts = [prompt for prompt in make_prompts() for _ in range(GROUP)]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])

    def run(seed: int) -> int:
        torch.manual_seed(seed)
        out = model.generate(
            ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=NEW_TOKENS
        )[:, width:]
        ends = torch.isin(out, torch.tensor(EOS))
        ended = ends.int().cumsum(-1)
        return int(((ended == 0) | ((ended == 1) & ends)).sum())

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description="Shoal's engine against generate")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    prepare_process(RuntimeConfig(threads=arguments.threads))
    model, small = build_model(torch.float32), build_model(torch.bfloat16)
    # The allocator settings are the process's, so that both have them.
    contestants = {
        "generate float32": generate_run(model),
        "generate bfloat16": generate_run(small),
        "shoal float32": engine_run(model, None),
        "shoal bfloat16 products": engine_run(model, torch.bfloat16),
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
