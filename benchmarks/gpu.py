"""The learner, the engine and a whole step at the shapes of real models with random weights: for a GPU.

    python benchmarks/gpu.py        # on CUDA; where there is none, at tiny shapes on the CPU, to see that it runs

Prints one table and writes it to benchmarks/results/gpu.md, with the date, the card, the versions and the command.

Learner: optimizer steps over one micro-batch of 16,384 packed tokens (LoRA: also over two of half as many, without
checkpointing) in completions of 2,048 (prompt of 128), no two of one prompt, so that nothing is gained by sharing.
Tokens/s counts forwarded tokens without padding; peak memory is torch's, of everything on the device. Model FLOPs
utilisation:

    MFU = (F N + 12 L H D C) x tokens/s / peak

with F = 6 for full training and 4 for LoRA (the frozen weights get no gradient), N the parameters that multiply (all
but the input embedding; a tied head counts once; adapters are left out), L layers, H heads of D dimensions and C the
mean length of the attended context, half of a sequence: a token's forward takes 2 N for the weights and 2 x 2 L H D C
for the two products of attention, forward and backward together three times that. What gradient checkpointing or the
chunked head compute again does not count. `peak` is the card's dense peak in 16 bits; of a card that is not known here,
and of a CPU, the median of some products of square matrices.

Decoding: 64 completions of 512 tokens (prompts of 128) by the engine and by `generate`, in turn. The bound is what
memory allows: a step reads every weight once and every row's keys and values,

    bound = rows x bandwidth / (W + rows x (prompt + new / 2) x 2 L K D x bytes)

with W the bytes of the weights that are read (a tied head once, no input embedding), K key-value heads, and the
bandwidth that a large copy reaches here, bytes read and written together.

Step: whole GRPO steps of `shoal.train` at the 0.6B shape, 16 prompts of 8 completions, seconds by phase (medians
without the first step).
"""

from __future__ import annotations

import argparse
import gc
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from transformers import Qwen3Config, Qwen3ForCausalLM

from shoal import train
from shoal.config import ShoalConfig, load_config
from shoal.engines.base import Request, SamplingParams
from shoal.engines.builtin.engine import TorchEngine
from shoal.learners.local import LocalLearner
from shoal.learners.lora import add_lora
from shoal.learners.model import Policy, compute_as_learners_do
from shoal.models.info import describe
from shoal.monitor.rows import read_rows
from shoal.runtime import Runtime, prepare_process, resolve_runtime
from shoal.tasks.story import story_tokenizer
from shoal.types import Batch, TrainSequence

RESULT = Path(__file__).parent / "results" / "gpu.md"
SHAPES = {
    "0.6B": (1024, 3072, 28, 16, 8, 128, 151_936),
    "4B": (2560, 9728, 36, 32, 8, 128, 151_936),
    "tiny": (64, 128, 2, 4, 2, 16, 1_000),
}
"""Hidden size, MLP size, layers, heads, key-value heads, head dimension, ids: Qwen3's."""
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}
"""Dense FLOP/s in 16 bits, by what a card's name has in it."""


@dataclass(frozen=True)
class Size:
    """How much is run: on a GPU, or on a CPU to see that it runs."""

    full: str
    adapted: str
    tokens: int
    sequence: int
    prompt: int
    rows: int
    new_tokens: int
    steps: int
    rounds: int


GPU = Size("0.6B", "4B", 16_384, 2_048, 128, 64, 512, 3, 3)
CPU = Size("tiny", "tiny", 512, 128, 16, 8, 16, 2, 1)


def model_config(shape: str, runtime: Runtime) -> Qwen3Config:
    hidden, mlp, layers, heads, kv_heads, head_dim, ids = SHAPES[shape]
    config = Qwen3Config(
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=ids,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
        eos_token_id=1,
    )
    config._attn_implementation = "sdpa" if runtime.attention == "varlen" else runtime.attention
    return config


def random_model(shape: str, runtime: Runtime) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    with torch.device(runtime.device):
        model = Qwen3ForCausalLM(model_config(shape, runtime))
    return model.to(runtime.param_dtype)


def build_policy(shape: str, runtime: Runtime, cfg: ShoalConfig) -> Policy:
    model: Any = random_model(shape, runtime)
    if cfg.model.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    lora = cfg.model.train == "lora"
    wrapped = add_lora(model, cfg.model.lora) if lora else model
    compute_as_learners_do(wrapped, model, runtime)
    return Policy(wrapped.eval(), describe(model_config(shape, runtime), None, ()), lora)


def build_batch(tokens: int, length: int, prompt: int, vocabulary: int) -> Batch:
    """Completions of `length` tokens, prompt included, that fill `tokens`."""
    random = np.random.default_rng(0)
    count, sampled = tokens // length, length - prompt
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


def multiplied(shape: str) -> int:
    """Parameters that multiply: N of the module's docstring."""
    hidden, mlp, layers, heads, kv_heads, head_dim, ids = SHAPES[shape]
    layer = hidden * 2 * (heads + kv_heads) * head_dim + 3 * hidden * mlp
    return layers * layer + hidden * ids


def flops_per_token(shape: str, length: int, lora: bool) -> float:
    """See the module's docstring."""
    _, _, layers, heads, _, head_dim, _ = SHAPES[shape]
    return (4 if lora else 6) * multiplied(shape) + 12 * layers * heads * head_dim * (length / 2)


def bytes_per_step(shape: str, size: Size, item: int) -> float:
    """What one step of decoding has to read, on average over the steps; see the module's docstring."""
    _, _, layers, _, kv_heads, head_dim, _ = SHAPES[shape]
    context = size.prompt + size.new_tokens / 2
    return item * (multiplied(shape) + size.rows * context * 2 * layers * kv_heads * head_dim)


def synchronise(runtime: Runtime) -> None:
    if runtime.device.type == "cuda":
        torch.cuda.synchronize(runtime.device)


def seconds_of(work: Callable[[], Any], runtime: Runtime, rounds: int, warm_up: int = 1) -> float:
    """Median seconds of some work, what it left on the device included."""
    found = []
    for _ in range(warm_up + rounds):
        synchronise(runtime)
        started = perf_counter()
        work()
        synchronise(runtime)
        found.append(perf_counter() - started)
    return median(found[warm_up:])


def peak_flops(runtime: Runtime) -> tuple[float, str]:
    """FLOP/s to compare with, and where the number is from."""
    on_cuda = runtime.device.type == "cuda"
    name = torch.cuda.get_device_name(runtime.device) if on_cuda else ""
    for known, peak in PEAKS.items():
        if known in name:
            return peak, f"{known}'s dense peak"
    side = 8192 if on_cuda else 512
    left = torch.randn(side, side, device=runtime.device, dtype=torch.bfloat16 if on_cuda else torch.float32)
    return 2 * side**3 / seconds_of(lambda: left @ left, runtime, 5, 2), "of products measured here"


def bandwidth(runtime: Runtime) -> float:
    """Bytes/s of a large copy, read and written together."""
    source = torch.zeros(2**30 if runtime.device.type == "cuda" else 2**26, dtype=torch.uint8, device=runtime.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds_of(lambda: target.copy_(source), runtime, 5, 2)


def peak_gib(runtime: Runtime) -> str:
    """Since the last `reset_peak_memory_stats`."""
    if runtime.device.type != "cuda":
        return "peak memory: CUDA only"
    return f"peak {torch.cuda.max_memory_allocated(runtime.device) / 2**30:.1f} GiB"


def learn(what: str, shape: str, size: Size, words: list[str], peak: float, parts: int = 1) -> tuple[str, str]:
    """One row of the table: a learner's optimizer steps, each over so many micro-batches."""
    cfg = load_config("story", [*words, f"learner.micro_batch_tokens={size.tokens // parts}"])
    runtime = resolve_runtime(cfg.runtime, cfg.model)
    if runtime.device.type == "cuda":
        gc.collect()  # graphs and engines of the rows before hang together in circles
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(runtime.device)
    policy = build_policy(shape, runtime, cfg)
    learner = LocalLearner(policy, cfg, runtime, total_steps=size.rounds + 2)
    batch = build_batch(size.tokens, size.sequence, size.prompt, SHAPES[shape][-1])
    try:
        seconds = seconds_of(lambda: learner.train(batch), runtime, size.rounds, 2)
    except torch.OutOfMemoryError:
        return what, "does not fit"
    speed = len(batch.sequences) * size.sequence / seconds
    used = flops_per_token(shape, size.sequence, policy.lora) * speed / peak
    detail = f"attention {runtime.attention}, {str(runtime.param_dtype).removeprefix('torch.')}"
    return what, f"{speed:,.0f} tokens/s, {used:.1%} MFU, {peak_gib(runtime)} ({detail})"


def decode(shape: str, size: Size, runtime: Runtime, cfg: ShoalConfig, speed: float) -> list[tuple[str, str]]:
    """Rows of the table: the engine, `generate`, and the bound."""
    policy = build_policy(shape, runtime, cfg)
    random = Random(0)
    prompts = [[random.randrange(2, policy.vocabulary) for _ in range(size.prompt)] for _ in range(size.rows)]
    policy.model.generation_config.eos_token_id = None
    tokenizer = SimpleNamespace(eos_token_id=1)
    engine = TorchEngine(policy.model, tokenizer, max_batch=size.rows, compute_dtype=runtime.compute_dtype)
    engine.refresh(0)
    engine.ends[:] = False  # every completion runs to its limit, as `generate` does without an end of sequence
    sampling = SamplingParams(size.new_tokens)
    ids = torch.tensor(prompts, device=runtime.device)

    def ours() -> None:
        outputs = engine.generate([Request(str(row), tuple(ids), row, sampling) for row, ids in enumerate(prompts)])
        assert sum(len(output.token_ids) for output in outputs) == size.rows * size.new_tokens

    def theirs() -> None:
        many = {"max_new_tokens": size.new_tokens, "min_new_tokens": size.new_tokens}
        mask = torch.ones_like(ids)
        policy.model.generate(ids, attention_mask=mask, do_sample=True, top_k=0, pad_token_id=0, **many)

    tokens = size.rows * size.new_tokens
    mine = tokens / seconds_of(ours, runtime, size.rounds)
    other = tokens / seconds_of(theirs, runtime, 1, 0)  # a tenth of a minute and more
    item = (runtime.compute_dtype or runtime.param_dtype).itemsize
    bound = size.rows * speed / bytes_per_step(shape, size, item)
    what = f"decode {size.rows} x {size.new_tokens}, {shape}"
    return [
        (what, f"{mine:,.0f} tokens/s: {mine / other:.2f} times `generate`, {mine / bound:.1%} of the bound"),
        (f"{what}, `generate`", f"{other:,.0f} tokens/s"),
        (f"{what}, bound of memory", f"{bound:,.0f} tokens/s at {speed / 1e12:.2f} TB/s"),
    ]


def whole_steps(shape: str, size: Size, runtime: Runtime, words: list[str]) -> list[tuple[str, str]]:
    """Rows of the table: seconds of a GRPO step and of its phases."""
    with TemporaryDirectory() as place:
        folder = Path(place)
        tokenizer = story_tokenizer()
        model = random_model(shape, runtime)
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.config.eos_token_id = tokenizer.eos_token_id
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        del model
        off = ("evaluation.every=0", "evaluation.at_start=false", "checkpoint.every=0", "checkpoint.save_final=false")
        keys = [
            f"model.name={folder / 'model'}",
            "run.prompts_per_step=16",
            f"run.steps={size.steps}",
            f"sampling.max_new_tokens={size.new_tokens}",
            f"learner.micro_batch_tokens={size.tokens}",
            "run.made_up_advantages=true",
            "run.preflight=false",
            "monitor.progress=off",
        ]
        train(load_config("story", [*words, *keys, *off]), folder / "run")
        rows = [row for row in read_rows(folder / "run") if "train/grad_norm" in row][1:]
    names = sorted({name for row in rows for name in row if name.startswith("seconds/")})
    phases = ", ".join(f"{name.removeprefix('seconds/')} {median(row[name] for row in rows):.2f} s" for name in names)
    return [(f"GRPO step, {shape}, 16 x 8 completions of up to {size.new_tokens}", phases)]


def table(rows: list[tuple[str, str]], runtime: Runtime) -> str:
    """The file's text."""
    on_cuda = runtime.device.type == "cuda"
    card = (
        torch.cuda.get_device_name(runtime.device) if on_cuda else "no GPU: tiny shapes on a CPU, no figures to quote"
    )
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    head = f"## {datetime.now(UTC):%Y-%m-%d}, {card}, {versions}\n\n`python {shlex.join(sys.argv)}`\n\n"
    lines = "\n".join(f"| {what} | {found} |" for what, found in rows)
    return f"{head}| what | measured |\n|---|---|\n{lines}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=None, help="default: results/gpu.md; on a CPU nothing is written")
    parser.add_argument("overrides", nargs="*", help="such as model.attention=eager")
    arguments = parser.parse_args()
    size = CPU if arguments.device == "cpu" else GPU
    words = [f"runtime.device={arguments.device}", *arguments.overrides]
    cfg = load_config("story", words)
    runtime = resolve_runtime(cfg.runtime, cfg.model)
    prepare_process(cfg.runtime)
    peak, source = peak_flops(runtime)
    adapter = [*words, "model.train=lora"]
    count = f"{size.tokens:,} packed tokens"
    rows = [("MFU's peak", f"{peak / 1e12:,.1f} TFLOP/s ({source})")]

    def report(*found: tuple[str, str]) -> None:
        for what, measured in found:
            print(f"{what}: {measured}", flush=True)
        rows.extend(found)

    report(learn(f"learner, {size.full} full, {count}", size.full, size, words, peak))
    report(*decode(size.full, size, runtime, cfg, bandwidth(runtime)))
    report(*whole_steps(size.full, size, runtime, words))
    for what, more in (("checkpointing, ", ["model.gradient_checkpointing=true"]), ("two micro-batches, ", [])):
        parts = 1 if more else 2
        report(
            learn(f"learner, {size.adapted} LoRA, {what}{count}", size.adapted, size, [*adapter, *more], peak, parts)
        )
    text = table(rows, runtime)
    print(text)
    out = arguments.out or (RESULT if runtime.device.type == "cuda" else None)
    if out is not None:
        out.parent.mkdir(exist_ok=True)
        out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
