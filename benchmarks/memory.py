"""Peak memory of one training step at a vocabulary of 152k, with the head in chunks and with whole logits.

    python benchmarks/memory.py

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
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from shoal.config import ShoalConfig
from shoal.learners.local import LocalLearner
from shoal.learners.model import Policy
from shoal.runtime import resolve_runtime
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
    learner = LocalLearner(Policy(model, None, VOCABULARY, 512, lora=False), cfg, runtime, 10)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--only", type=int, help="run one variant in this process")
    arguments = parser.parse_args()
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
