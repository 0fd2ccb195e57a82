"""The learner and the engine at the shape of a real model with random weights: for a GPU.

    python benchmarks/real_shape.py                            # Qwen3-0.6B, 16k tokens a micro-batch
    python benchmarks/real_shape.py --shape tiny --tokens 512 --device cpu      # that it runs at all

Training: one optimizer step over one micro-batch of `--tokens` tokens in completions of 2,048 (prompt of 128), no two
of one prompt, so that nothing is gained by sharing. Tokens/s counts forwarded tokens without padding; peak memory is
torch's, of everything on the device. Model FLOPs utilisation:

    MFU = (6 N + 12 L H D C) x tokens/s / peak

with N the parameters that multiply (all but the input embedding; a tied head counts once), L layers, H heads of D
dimensions and C the mean length of the attended context, half of a sequence: a token's forward takes 2 N for the
weights and 2 x 2 L H D C for the two products of attention, forward and backward together three times that. `--peak` is
the device's dense peak in 16 bits, in TFLOP/s (H100 and H200: 989). The field's anchor on an H100 with Qwen3-0.6B:
11.9k tokens/s, 11.1 % MFU, 12.5 GiB.

Decoding: 64 completions of 512 tokens (prompts of 128) by the engine and by `generate`, in turn; the ratio is of
tokens per second.
"""

from __future__ import annotations

import argparse
from random import Random
from statistics import median
from time import perf_counter
from types import SimpleNamespace

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from shoal.config import load_config
from shoal.engines.base import Request, SamplingParams
from shoal.engines.builtin.engine import TorchEngine
from shoal.learners.cpu.mixed import use_mixed_linears
from shoal.learners.local import LocalLearner
from shoal.learners.model import Policy
from shoal.runtime import Runtime, prepare_process, resolve_runtime
from shoal.types import Batch, TrainSequence

SHAPES = {
    "qwen3-0.6b": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 1000,
    },
}
PROMPT, SEQUENCE = 128, 2048


def build_policy(shape: str, runtime: Runtime) -> Policy:
    config = Qwen3Config(**SHAPES[shape], tie_word_embeddings=True, max_position_embeddings=8192, eos_token_id=1)
    config._attn_implementation = runtime.attention
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config).to(runtime.device, runtime.param_dtype)
    use_mixed_linears(model, runtime)
    tokenizer = SimpleNamespace(eos_token_id=1, pad_token_id=0)
    return Policy(model, tokenizer, config.vocab_size, config.max_position_embeddings, lora=False)


def build_batch(tokens: int, length: int, vocabulary: int) -> Batch:
    """Completions of `length` tokens, prompt included, that fill `tokens`."""
    random = np.random.default_rng(0)
    count, prompt = tokens // length, min(PROMPT, length // 2)
    sampled = length - prompt
    sequences = [
        TrainSequence(
            completion=number,
            group=number,
            ids=random.integers(2, vocabulary, length),
            context=prompt,
            mask=np.ones(sampled, dtype=bool),
            sampler_logprobs=np.full(sampled, -np.log(vocabulary), dtype=np.float32),
            advantages=np.full(sampled, 1.0 if number % 2 else -1.0),
            completion_tokens=sampled,
        )
        for number in range(count)
    ]
    return Batch(sequences, count, count * sampled, temperature=1.0, max_new_tokens=sampled)


def flops_per_token(shape: str, length: int) -> float:
    """See the module's docstring."""
    s = SHAPES[shape]
    width = s["num_attention_heads"] * s["head_dim"]
    keys = s["num_key_value_heads"] * s["head_dim"]
    layer = s["hidden_size"] * (2 * width + 2 * keys) + 3 * s["hidden_size"] * s["intermediate_size"]
    parameters = s["num_hidden_layers"] * layer + s["hidden_size"] * s["vocab_size"]
    return 6 * parameters + 12 * s["num_hidden_layers"] * width * (length / 2)


def synchronise(runtime: Runtime) -> None:
    if runtime.device.type == "cuda":
        torch.cuda.synchronize(runtime.device)


def train(arguments: argparse.Namespace, runtime: Runtime, overrides: list[str]) -> None:
    length = min(SEQUENCE, arguments.tokens)
    cfg = load_config("story", overrides)
    learner = LocalLearner(build_policy(arguments.shape, runtime), cfg, runtime, total_steps=arguments.rounds + 2)
    batch = build_batch(arguments.tokens, length, SHAPES[arguments.shape]["vocab_size"])
    seconds = []
    for _ in range(arguments.rounds + 2):
        synchronise(runtime)
        started = perf_counter()
        learner.train(batch)
        synchronise(runtime)
        seconds.append(perf_counter() - started)
    speed = len(batch.sequences) * length / median(seconds[2:])
    line = f"training: {speed:,.0f} tokens/s"
    if arguments.peak:
        line += f", {flops_per_token(arguments.shape, length) * speed / (arguments.peak * 1e12):.1%} MFU"
    if runtime.device.type == "cuda":
        line += f", peak {torch.cuda.max_memory_allocated(runtime.device) / 2**30:.1f} GiB"
    print(line, f"(attention {runtime.attention}, parameters {runtime.param_dtype})", flush=True)


def decode(arguments: argparse.Namespace, runtime: Runtime) -> None:
    policy = build_policy(arguments.shape, runtime)
    random = Random(0)
    vocabulary = SHAPES[arguments.shape]["vocab_size"]
    prompts = [[random.randrange(2, vocabulary) for _ in range(PROMPT)] for _ in range(arguments.rows)]
    policy.model.generation_config.eos_token_id = None
    engine = TorchEngine(policy.model, policy.tokenizer, max_batch=arguments.rows, compute_dtype=runtime.compute_dtype)
    engine.ends[:] = False  # every completion runs to its limit, as `generate` does without an end of sequence
    sampling = SamplingParams(arguments.new_tokens)
    ids = torch.tensor(prompts, device=runtime.device)
    ours, theirs = [], []
    for turn in range(arguments.rounds + 1):
        started = perf_counter()
        outputs = engine.generate(
            [Request(f"{turn}/{row}", tuple(prompt), row, sampling) for row, prompt in enumerate(prompts)]
        )
        synchronise(runtime)
        ours.append(sum(len(output.token_ids) for output in outputs) / (perf_counter() - started))
        started = perf_counter()
        found = policy.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            pad_token_id=0,
            max_new_tokens=arguments.new_tokens,
            min_new_tokens=arguments.new_tokens,
        )
        synchronise(runtime)
        theirs.append((found.shape[1] - PROMPT) * len(prompts) / (perf_counter() - started))
    ratio = median(mine / other for mine, other in zip(ours[1:], theirs[1:], strict=True))
    print(f"decoding: engine {median(ours[1:]):,.0f} tokens/s, generate {median(theirs[1:]):,.0f}: ratio {ratio:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen3-0.6b")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--peak", type=float, default=0.0, help="TFLOP/s in 16 bits; 0: no MFU")
    parser.add_argument("overrides", nargs="*", help="such as model.gradient_checkpointing=true")
    arguments = parser.parse_args()
    overrides = [
        f"runtime.device={arguments.device}",
        f"learner.micro_batch_tokens={arguments.tokens}",
        *arguments.overrides,
    ]
    cfg = load_config("story", overrides)
    runtime = resolve_runtime(cfg.runtime, cfg.model)
    prepare_process(cfg.runtime)
    train(arguments, runtime, overrides)
    decode(arguments, runtime)


if __name__ == "__main__":
    main()
