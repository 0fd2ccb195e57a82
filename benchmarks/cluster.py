"""Seconds of a broadcast at 100M parameters by engines, learner and kind, beside bare Gloo; a step on 1 and 2 ranks.

    python benchmarks/cluster.py                       # everything, a few minutes
    python benchmarks/cluster.py --learners local --engines 1 --runs 9
    python benchmarks/cluster.py --no-steps --dtype float32

Every process has one thread and all are on this machine: learner ranks, and receivers that hold a model's weights and
take them as an engine's process does. Bare Gloo is one `broadcast` a tensor of the same bytes into the receivers' own
memory, which nothing else is done with. Each run has all kinds in turn, and a kind ends when every receiver is done.

    full      what weight_sync=broadcast does
    anchor    the same with weight_sync.delta=true: the learner also copies what it sends
    compare   with 3 % of the elements changed: they are found and encoded; the engine samples meanwhile
    delta     what was found is sent, applied and checked
"""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from shoal.config import ShoalConfig
from shoal.tasks.story import story_tokenizer
from shoal.types import Batch, TrainSequence
from shoal.wire.delta import signed
from shoal.wire.held import HeldWeights
from shoal.wire.stream import Meeting, WeightSpec, bucket_size, listen, receive

HOST, SECONDS, CPU = "127.0.0.1", 300.0, torch.device("cpu")
SHARE = 0.03
PARAMETERS_7B, BYTES = 7.6e9, 2
LINKS = (25e9 / 8, 2.5e9 / 8)
LEARNERS = {"local": (None, 1), "zero0": (0, 1), "zero3": (3, 1), "zero3x2": (3, 2)}
"""Stage of ZeRO (None: no DeepSpeed) and ranks."""


def save_model(folder: Path) -> Path:
    """A random Qwen3 of 110M parameters."""
    tokenizer = story_tokenizer()
    config = Qwen3Config(
        vocab_size=8192, hidden_size=768, intermediate_size=3072, num_hidden_layers=11, num_attention_heads=12,
        num_key_value_heads=12, head_dim=64, max_position_embeddings=512, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def config_of(model: Path, stage: int | None, dtype: str) -> ShoalConfig:
    cfg = ShoalConfig()
    cfg.model.name, cfg.model.dtype = str(model), dtype
    cfg.runtime.target, cfg.runtime.mixed_precision, cfg.runtime.threads = "cpu", "none", 1
    cfg.learner.timeout, cfg.learner.zero_stage, cfg.optimizer.lr = SECONDS, stage or 0, 1e-5
    return cfg


class Rank:
    """One rank of the learner."""

    def __init__(self, model: Path, stage: int | None, dtype: str, rank: int, world: int, address: str) -> None:
        cfg = config_of(model, stage, dtype)
        if stage is None:
            from shoal.learners.local import LocalLearner  # noqa: PLC0415 - loaded in the ranks alone
            from shoal.learners.model import load_policy  # noqa: PLC0415
            from shoal.runtime import resolve_runtime  # noqa: PLC0415

            runtime = resolve_runtime(cfg.runtime, cfg.model)
            self.learner: Any = LocalLearner(load_policy(cfg.model, runtime), cfg, runtime, 10)
        else:
            host, port = address.split(":")
            os.environ.update(
                RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE=str(world), MASTER_ADDR=host, MASTER_PORT=port,
                GLOO_SOCKET_IFNAME="lo", DS_ACCELERATOR="cpu",
            )  # fmt: skip
            from shoal.learners.deepspeed.rank import open_rank  # noqa: PLC0415 - imports DeepSpeed

            self.learner = open_rank(cfg, address, rank, world, 10)
        self.rank, self.version = rank, 0
        self.own: list[torch.Tensor] = []

    def specs(self) -> list[WeightSpec]:
        return self.learner.weight_specs()

    def join(self, meeting: Meeting) -> None:
        self.meeting = meeting
        self.learner.join(meeting)
        if self.rank == 0:
            self.own = [torch.ones(spec.nbytes, dtype=torch.uint8) for spec in self.specs()]

    def bare(self) -> None:
        for one in self.own:
            self.learner.group[1].broadcast(one)

    def full(self, delta: bool = False) -> None:
        self.learner.cfg.weight_sync.delta = delta
        self.version += 1
        self.learner.send_weights(self.meeting, self.version)

    def anchor(self) -> None:
        self.full(delta=True)

    def perturb(self) -> None:
        """Flips the last bit of 3 % of the elements."""
        for parameter in self.learner.policy.model.parameters():
            held = parameter if parameter.numel() else parameter.ds_tensor  # ZeRO-3 keeps small ones whole
            bits = signed(held)
            places = torch.from_numpy(np.flatnonzero(np.random.default_rng().random(len(bits)) < SHARE))
            bits[places] ^= 1

    def compare(self) -> Any:
        self.version += 1
        return self.learner.compare_weights(self.version)

    def delta(self) -> None:
        self.learner.send_delta(self.meeting)

    def step(self, sequences: int, tokens: int) -> float:
        """Seconds of a training step, after which the ranks are at the same place."""
        random = np.random.default_rng(0)
        batch = Batch(
            [
                TrainSequence(
                    completion=number, group=number // 4, ids=random.integers(7, 100, tokens), context=8,
                    mask=np.ones(tokens - 8, dtype=bool),
                    sampler_logprobs=np.full(tokens - 8, -4.6, dtype=np.float32),
                    advantages=np.full(tokens - 8, 1.0 if number % 2 else -1.0), completion_tokens=tokens - 8,
                )
                for number in range(sequences)
            ],
            completions=sequences, trained_tokens=sequences * (tokens - 8), temperature=1.0,
            max_new_tokens=tokens,
        )  # fmt: skip
        started = perf_counter()
        self.learner.train(batch)
        return perf_counter() - started


class Receiver:
    """An engine's process as far as weights go."""

    def __init__(self, rank: int) -> None:
        self.rank, self.version = rank, 0

    def join(self, meeting: Meeting, rows: Sequence[Sequence[Any]]) -> None:
        self.specs = [WeightSpec.from_row(row) for row in rows]
        self.group = meeting.join(self.rank, CPU)
        self.own = {spec.name: torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype)) for spec in self.specs}
        self.held = HeldWeights(self.specs, self.own, 1)

    def bare(self) -> None:
        for one in self.own.values():
            self.group.broadcast(one.view(-1).view(torch.uint8))

    def full(self) -> None:
        self.version += 1
        weights = receive(self.group, self.specs, bucket_size(self.specs), CPU, self.own)
        for name, weight in self.held.noting(weights, self.version):
            self.own[name].copy_(weight)

    def anchor(self) -> None:
        self.full()

    def delta(self) -> None:
        self.version += 1
        found = self.held.take(self.group, self.version, CPU)
        assert not found.wrong, found.wrong


def serve(connection: Any, make: Callable[..., Any], arguments: Sequence[Any]) -> None:
    """Does in a process of its own what it is asked."""
    torch.set_num_threads(1)
    one = make(*arguments)
    connection.send(None)
    while True:
        name, given = connection.recv()
        connection.send(getattr(one, name)(*given))


class Process:
    """One of these processes."""

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, make, arguments), daemon=True)
        self.process.start()

    def ask(self, name: str, *arguments: Any) -> None:
        self.connection.send((name, arguments))

    def answer(self) -> Any:
        if not self.connection.poll(SECONDS):
            raise TimeoutError(f"no answer within {SECONDS:g} s")
        return self.connection.recv()


def together(processes: Sequence[Process], name: str, *arguments: Any) -> tuple[float, list[Any]]:
    """Seconds until all have done it, and what they give."""
    started = perf_counter()
    for one in processes:
        one.ask(name, *arguments)
    found = [one.answer() for one in processes]
    return perf_counter() - started, found


def free_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as door:
        door.bind((HOST, 0))
        return f"{HOST}:{door.getsockname()[1]}"


def open_ranks(model: Path, learner: str, dtype: str) -> list[Process]:
    stage, world = LEARNERS[learner]
    address = free_address()
    held = "float32" if stage == 0 else dtype  # ZeRO 0 has no others
    ranks = [Process(Rank, model, stage, held, rank, world, address) for rank in range(world)]
    for one in ranks:
        one.answer()
    return ranks


def broadcasts(model: Path, learner: str, engines: int, dtype: str, runs: int) -> dict[str, float]:
    """Medians of seconds by kind, of the share of bare Gloo's speed in each run, and bytes."""
    ranks = open_ranks(model, learner, dtype)
    receivers = [Process(Receiver, number + 1) for number in range(engines)]
    for one in receivers:
        one.answer()
    specs = together(ranks, "specs")[1][0]
    store = listen(HOST, SECONDS)
    meeting = Meeting(HOST, store.port, "benchmark", 1 + engines, SECONDS)
    for one in receivers:
        one.ask("join", meeting, [spec.to_row() for spec in specs])
    together(ranks, "join", meeting)
    for one in receivers:
        one.answer()
    found: list[dict[str, float]] = []
    for run in range(runs + 1):
        row = {}
        for kind in ("bare", "full", "anchor") if run % 2 else ("full", "bare", "anchor"):
            row[kind] = together([*ranks, *receivers], kind)[0]
        together(ranks, "perturb")
        row["compare"], (size, *_) = together(ranks, "compare")
        row["delta"] = together([*ranks, *receivers], "delta")[0]
        row |= {"of bare": row["bare"] / row["full"], "delta bytes": size.nbytes, "changed": size.changed_share}
        if run:  # the first pays for pages that are touched for the first time
            found.append(row)
    for one in (*ranks, *receivers):
        one.process.terminate()
    return {name: median(row[name] for row in found) for name in found[0]} | {
        "bytes": sum(spec.nbytes for spec in specs)
    }


def print_row(learner: str, engines: int, row: dict[str, float]) -> None:
    seconds = "  ".join(f"{name} {row[name]:.3f}" for name in ("bare", "full", "anchor", "compare", "delta"))
    print(
        f"{learner:8} {engines} engines  {row['bytes'] / 1e6:.0f} MB  {seconds} s  full is "
        f"{100 * row['of bare']:.0f} % of bare; delta {row['delta bytes'] / 1e6:.1f} MB at "
        f"{100 * row['changed']:.1f} % changed, {row['bytes'] / row['delta bytes']:.1f} times fewer bytes",
        flush=True,
    )


def project(row: dict[str, float], threads: int) -> None:
    """What this machine's figures at one engine come to at 7B, with links in place of loopback."""
    size = PARAMETERS_7B * BYTES
    scale = size / row["bytes"]
    work = max(row["full"] - row["bare"], 0) * scale
    sparse = row["delta bytes"] * scale
    apply = max(row["delta"] - row["bare"] * row["delta bytes"] / row["bytes"], 0) * scale / threads
    compare = row["compare"] * scale / threads
    print(
        f"\n7B in 16 bits ({size / 1e9:.1f} GB, delta {sparse / 1e9:.2f} GB), {threads} threads at either end:\n"
        "  full  = bytes / link + (full - bare here) x scale\n"
        "  delta = delta bytes / link + (delta here - its bytes at bare Gloo's speed) x scale / threads\n"
        f"  before it, while the engine samples: compare here x scale / threads = {compare:.1f} s;  scale = {scale:.0f}"
    )
    for link in LINKS:
        print(
            f"  {link * 8 / 1e9:g} Gbit/s: full {size / link:.1f} + {work:.1f} = {size / link + work:.1f} s, "
            f"delta {sparse / link:.1f} + {apply:.1f} = {sparse / link + apply:.1f} s"
        )


def steps(model: Path, runs: int, sequences: int, tokens: int) -> None:
    """A training step of ZeRO-3 on one rank and on two, in turn; each rank has one core."""
    groups = {learner: open_ranks(model, learner, "float32") for learner in ("zero3", "zero3x2")}
    found: dict[str, list[float]] = {learner: [] for learner in groups}
    for run in range(runs + 1):
        for learner, ranks in groups.items():
            seconds, _ = together(ranks, "step", sequences, tokens)
            if run:
                found[learner].append(seconds)
    for ranks in groups.values():
        for one in ranks:
            one.process.terminate()
    one, two = (median(found[learner]) for learner in ("zero3", "zero3x2"))
    ratio = median(a / b for a, b in zip(found["zero3"], found["zero3x2"], strict=True))
    print(f"\na step of {sequences} x {tokens} tokens, ZeRO-3: 1 rank {one:.2f} s, 2 ranks {two:.2f} s: {ratio:.2f} x")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--learners", nargs="*", default=list(LEARNERS), choices=list(LEARNERS))
    parser.add_argument("--engines", nargs="*", type=int, default=[1, 2, 4])
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=8, help="of the machines that the projection is for")
    parser.add_argument("--no-steps", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = save_model(Path(folder))
        print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
        for learner in given.learners:
            for engines in given.engines if learner == "local" else given.engines[:1]:
                row = broadcasts(model, learner, engines, given.dtype, given.runs)
                print_row(learner, engines, row)
                if learner == "local" and engines == 1:
                    project(row, given.threads)
        if not given.no_steps:
            steps(model, given.runs, 16, 128)
        print(f"load {os.getloadavg()[0]:.1f}", flush=True)
