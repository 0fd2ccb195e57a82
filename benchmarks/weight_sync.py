"""Seconds of each weight sync into vLLM, at 0.4M and 100M parameters, and a broadcast against a bare Gloo one.

    python benchmarks/weight_sync.py --modes broadcast shared lora --runs 7
    python benchmarks/weight_sync.py --restart            # starts a server: the minute that it takes is the figure
    python benchmarks/weight_sync.py --bare --runs 9      # Shoal's stream against bare broadcasts, in turn

vLLM runs in this process, so that what is timed is the sync and not HTTP (a few milliseconds a call). Bare Gloo is one
`broadcast` a tensor, between two processes, of the very same tensors, which nothing is done with.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from shoal.build import build_parts
from shoal.config import load_config
from shoal.tasks.story import story_tokenizer
from shoal.wire.stream import WeightGroup, WeightSpec, bucket_size, find, listen, receive, send

HOST = "127.0.0.1"
SECONDS = 300.0
SIZES = {
    "0.4M": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4},
    "100M": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 11, "num_attention_heads": 12},
}


def save_model(size: str, folder: Path) -> Path:
    """A random Qwen3 of about so many parameters."""
    tokenizer = story_tokenizer()
    shape = SIZES[size]
    config = Qwen3Config(
        vocab_size=len(tokenizer) if size == "0.4M" else 8192,
        num_key_value_heads=shape["num_attention_heads"],
        head_dim=shape["hidden_size"] // shape["num_attention_heads"],
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **shape,
    )
    model = Qwen3ForCausalLM(config)
    print(f"{size}: {sum(one.numel() for one in model.parameters()) / 1e6:.1f}M parameters", flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def publish_with(kind: str, size: str, runs: int) -> None:
    """Prints the median seconds of a publication, its parts and the write before it."""
    with tempfile.TemporaryDirectory() as folder:
        model = save_model(size, Path(folder) / "model")
        overrides = [
            f"engine={'vllm_server' if kind == 'restart' else 'vllm'}",
            f"weight_sync={kind}",
            f"model.name={model}",
            "engine.max_batch=16",
            "engine.vllm.cache_gib=0.25",
            "runtime.mixed_precision=none",
            "weight_sync.self_check_every=0",
            "run.preflight=false",
        ]
        overrides += ["model.train=lora", "model.lora.r=16"] if kind == "lora" else []
        parts = build_parts(load_config("story", overrides), {}, Path(folder))
        try:
            parts.sync.publish(0).wait()
            found: list[dict[str, float]] = []
            for version in range(1, runs + 1):
                started = time.perf_counter()
                parts.sync.before_write()
                parts.sync.after_write()
                paused = time.perf_counter() - started
                seconds = parts.sync.publish(version).wait()
                total = time.perf_counter() - started
                found.append({"total": total, "writing": paused, **seconds})
        finally:
            parts.close()
    medians = {name: statistics.median(row[name] for row in found) for name in found[0]}
    print(
        f"{kind:10} {size}: " + "  ".join(f"{name} {1000 * value:.1f} ms" for name, value in medians.items()),
        flush=True,
    )


def weights() -> list[tuple[str, torch.Tensor]]:
    """The tensors of the 100M model."""
    model = Qwen3ForCausalLM(
        Qwen3Config(vocab_size=8192, head_dim=64, num_key_value_heads=12, tie_word_embeddings=True, **SIZES["100M"])
    )
    return [(name, value.detach()) for name, value in model.named_parameters()]


def take(port: int, rows: list[list[Any]], runs: int) -> None:
    """The other process: receives by turns, and puts what Shoal sends into parameters, as a worker does."""
    torch.set_num_threads(1)
    specs = [WeightSpec.from_row(row) for row in rows]
    group = WeightGroup(find(HOST, port, SECONDS), "bench", 1, 2, SECONDS, torch.device("cpu"), HOST)
    places = {spec.name: torch.zeros(spec.shape) for spec in specs}
    bucket = bucket_size(specs)
    process = psutil.Process()
    for _ in range(runs):
        for place in places.values():
            group.broadcast(place.view(-1).view(torch.uint8))
        before = process.memory_info().rss
        most = before
        for name, tensor in receive(group, specs, bucket, torch.device("cpu")):
            places[name].copy_(tensor)
            most = max(most, process.memory_info().rss)
        largest = max(spec.nbytes for spec in specs)
        print(f"    memory beside the weights: {(most - before) / largest:.2f} x the largest tensor", flush=True)
        group.broadcast(torch.zeros(1, dtype=torch.uint8))


def against_bare(runs: int) -> None:
    """Shoal's stream and bare broadcasts in turn."""
    torch.set_num_threads(1)
    tensors = weights()
    specs = [WeightSpec(name, tuple(value.shape), "float32") for name, value in tensors]
    total = sum(spec.nbytes for spec in specs)
    store = listen(HOST, SECONDS)
    rows = [spec.to_row() for spec in specs]
    other = multiprocessing.get_context("spawn").Process(target=take, args=(store.port, rows, runs), daemon=True)
    other.start()
    group = WeightGroup(store, "bench", 0, 2, SECONDS, torch.device("cpu"), HOST)
    bucket = bucket_size(specs)
    ratios, ours_all, bare_all = [], [], []
    for run in range(runs):
        started = time.perf_counter()
        for _, tensor in tensors:
            group.broadcast(tensor.view(-1).view(torch.uint8))
        bare = time.perf_counter() - started
        started = time.perf_counter()
        send(group, stream(tensors), bucket, torch.device("cpu"))
        group.broadcast(torch.zeros(1, dtype=torch.uint8))  # the other process has put all of it in its place
        ours = time.perf_counter() - started
        if run:  # the first pays for pages that are touched for the first time
            ratios.append(bare / ours)
            ours_all.append(ours)
            bare_all.append(bare)
    other.join(60)
    print(f"{len(specs)} tensors, {total / 4e6:.1f}M parameters, float32")
    print(f"bare Gloo {statistics.median(bare_all):.3f} s   shoal {statistics.median(ours_all):.3f} s")
    print(f"shoal reaches {100 * statistics.median(ratios):.0f} % of bare Gloo (median of {len(ratios)} turns)")


def stream(tensors: list[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    yield from tensors


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--modes", nargs="*", default=[])
    parser.add_argument("--sizes", nargs="*", default=list(SIZES))
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--restart", action="store_true")
    parser.add_argument("--bare", action="store_true")
    given = parser.parse_args()
    if given.bare:
        against_bare(given.runs)
    for kind in given.modes:
        for size in given.sizes:
            publish_with(kind, size, given.runs)
    if given.restart:
        for size in given.sizes:
            publish_with("restart", size, 1)
