"""Peak memory of one training step at a vocabulary of 152k, with the head in chunks and with whole logits.

    python benchmarks/memory.py
    python benchmarks/memory.py --plan      # the table of docs/memory.md: whole processes against what is planned

A small hidden size, so that the logits are what matters. Each variant runs in a process of its own and reports how far
its resident memory rose above what it held before the step (Linux's VmHWM, after a reset through clear_refs). The
chunked step may grow by the gradient of the head and one chunk of logits; the whole-logits step by several tensors of
[tokens, vocabulary]. On CUDA the allocator's own peak is read.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

import shoal.build  # noqa: F401 - what a run imports is part of its memory
from shoal.config import ShoalConfig
from shoal.engines.builtin.select import choose_decoder
from shoal.learners.local import LocalLearner
from shoal.learners.lora import add_lora
from shoal.learners.memory_plan import estimate, peak
from shoal.learners.model import Policy, compute_as_learners_do
from shoal.models.info import describe
from shoal.runtime import prepare_allocator, resolve_runtime
from shoal.types import Batch, TrainSequence

VOCABULARY, HIDDEN = 151_936, 64
SEQUENCES, PROMPT, NEW = 16, 32, 96
MIB = 2**20


def peak_reset() -> None:
    """Makes the kernel forget this process's highest resident memory."""
    Path("/proc/self/clear_refs").write_text("5")


def memory(field: str) -> int:
    """VmRSS or VmHWM of this process, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure(chunk: int, packing: bool) -> dict[str, float]:
    """Bytes that the second of two steps adds at its peak, and its gradient norm. chunk 0: whole logits."""
    torch.manual_seed(0)
    cfg = ShoalConfig()
    cfg.learner.logprob_chunk = chunk or 2**30
    cfg.learner.packing = "on" if packing else "off"
    cfg.runtime.mixed_precision = "none"
    runtime = resolve_runtime(cfg.runtime, cfg.model)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    with torch.device(runtime.device):
        model = Qwen3ForCausalLM(config).to(runtime.param_dtype).eval()
    model.set_attn_implementation(runtime.attention)
    learner = LocalLearner(Policy(model, describe(model.config, None, ()), lora=False), cfg, runtime, 10)
    if not chunk:
        learner.passes.forward.form = None  # the model's own logits, as for a head of an unknown form
    random = np.random.default_rng(0)
    sequences = [
        TrainSequence(
            completion=number,
            group=number // 4,
            ids=random.integers(0, VOCABULARY, PROMPT + NEW),
            context=PROMPT,
            mask=np.ones(NEW, dtype=np.bool_),
            sampler_logprobs=np.full(NEW, -11.9, dtype=np.float32),
            advantages=np.full(NEW, 1.0 if number % 2 else -1.0),
            completion_tokens=NEW,
        )
        for number in range(SEQUENCES)
    ]
    batch = Batch(sequences, SEQUENCES, SEQUENCES * NEW, temperature=1.0, max_new_tokens=NEW)
    learner.train(batch)  # the optimizer's state exists from here on
    if runtime.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        norm = learner.train(batch)["train/grad_norm"]
        return {"bytes": torch.cuda.max_memory_allocated() - before, "norm": norm}
    before = memory("VmRSS")
    peak_reset()
    norm = learner.train(batch)["train/grad_norm"]
    return {"bytes": memory("VmHWM") - before, "norm": norm}


SHAPES: dict[str, dict[str, int]] = {
    "135m": {
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "tiny": {
        "vocab_size": 4096,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
PRECISIONS = {"float32": ("float32", "none"), "mixed": ("float32", "bf16"), "bfloat16": ("bfloat16", "none")}


class EndToken:
    """As much of a tokenizer as a learner asks for."""

    eos_token_id, pad_token_id = 1, 0

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [3, 4, 5, 6]}


def whole_process(shape: str, train: str, precision: str, checkpointing: bool) -> dict[str, float]:
    """Highest resident memory of this process over two rounds of decoding and training, and what was planned."""
    torch.manual_seed(0)
    cfg = ShoalConfig()
    cfg.model.train, cfg.model.gradient_checkpointing = train, checkpointing
    cfg.model.dtype, cfg.runtime.mixed_precision = PRECISIONS[precision]
    cfg.runtime.target = "cpu"
    cfg.learner.micro_batch_tokens = 2048
    cfg.data.max_prompt_tokens = cfg.sampling.max_new_tokens = 64
    cfg.engine.max_batch, cfg.run.prompts_per_step, cfg.run.group_size = 16, 4, 8
    runtime = resolve_runtime(cfg.runtime, cfg.model)
    config = LlamaConfig(**SHAPES[shape], tie_word_embeddings=True, max_position_embeddings=512, eos_token_id=1)
    model = LlamaForCausalLM(config).to(runtime.param_dtype).eval()
    model.set_attn_implementation(runtime.attention)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    trained = add_lora(model, cfg.model.lora) if train == "lora" else model
    compute_as_learners_do(trained, model, runtime)
    prepare_allocator(cfg.runtime, sum(one.numel() for one in trained.parameters()))
    info = describe(config, None, [config.eos_token_id], cfg.model)
    policy = Policy(trained, replace(info, tokenizer=EndToken()), lora=train == "lora")
    learner = LocalLearner(policy, cfg, runtime, 10)
    decoder = choose_decoder(trained, runtime.compute_dtype)
    random = np.random.default_rng(0)
    for _ in range(2):
        with decoder.running():
            prompts = [random.integers(2, config.vocab_size, 64).tolist() for _ in range(16)]
            cache, _ = decoder.prefill(prompts)
            cache.resize(16, cache.end + 64, cache.end)
            for _ in range(4):
                decoder.forward(torch.zeros(16, 1, dtype=torch.long), cache)
        del cache
        sequences = [
            TrainSequence(
                completion=number,
                group=number // 8,
                ids=random.integers(2, config.vocab_size, 128),
                context=64,
                mask=np.ones(64, dtype=np.bool_),
                sampler_logprobs=np.full(64, -10.0, dtype=np.float32),
                advantages=np.full(64, 1.0 if number % 2 else -1.0),
                completion_tokens=64,
            )
            for number in range(32)
        ]
        learner.train(Batch(sequences, 32, 32 * 64, temperature=1.0, max_new_tokens=64))
        decoder.refresh()
    return {"peak": memory("VmHWM"), "plan": peak(estimate(cfg, runtime, info))}


def plan_table() -> None:
    """Prints the table of docs/memory.md."""
    print("| model | trained | precision | checkpointing | planned, MiB | measured, MiB | planned / measured |")
    print("|---|---|---|---|---|---|---|")
    for shape in SHAPES:
        for train in ("full", "lora"):
            for precision in PRECISIONS:
                for checkpointing in (True, False):
                    case = [shape, train, precision, str(int(checkpointing))]
                    command = [sys.executable, __file__, "--case", *case]
                    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                    sizes = f"{found['plan'] / MIB:.0f} | {found['peak'] / MIB:.0f}"
                    print(
                        f"| {shape} | {train} | {precision} | {'on' if checkpointing else 'off'} | {sizes} "
                        f"| {found['plan'] / found['peak']:.2f} |",
                        flush=True,
                    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--only", type=int, help="run one variant in this process")
    parser.add_argument("--plan", action="store_true", help="print the table of docs/memory.md")
    parser.add_argument("--case", nargs=4, help="run one row of that table in this process")
    arguments = parser.parse_args()
    if arguments.case:
        shape, train, precision, checkpointing = arguments.case
        print(json.dumps(whole_process(shape, train, precision, checkpointing == "1")))
        return
    if arguments.plan:
        plan_table()
        return
    if arguments.only is not None:
        print(json.dumps(measure(arguments.only, packing=False)))
        return
    tokens = SEQUENCES * NEW
    print(f"{tokens} trained tokens, vocabulary {VOCABULARY}: whole logits are {tokens * VOCABULARY * 4 / MIB:.0f} MiB")
    found = {}
    for chunk in [0, *arguments.chunks]:
        command = [sys.executable, __file__, "--only", str(chunk)]
        found[chunk] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        one = chunk * VOCABULARY * 4 / MIB
        name = f"chunk {chunk:4} ({one:4.0f} MiB of logits)" if chunk else "whole logits             "
        print(f"{name:36} step adds {found[chunk]['bytes'] / MIB:7.0f} MiB   gradient norm {found[chunk]['norm']:.6f}")
    first, last = arguments.chunks[0], arguments.chunks[-1]
    grown = (found[last]["bytes"] - found[first]["bytes"]) / ((last - first) * VOCABULARY * 4)
    print(f"from chunk {first} to {last}: {grown:.2f} bytes more per byte of logits")
    print(f"whole / chunk {first}: {found[0]['bytes'] / found[first]['bytes']:.1f} times the memory")


if __name__ == "__main__":
    main()
