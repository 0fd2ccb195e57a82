"""`shoal view` on large runs: `python benchmarks/view.py [--completions 1000 100000 1000000] [--tokens 2000]`.

For each size a run folder is made up, and `shoal view` is started on it anew. Printed: seconds from the start of the
process to its first reply, to the curves, to the first map of steps by groups, until all is indexed, for a page of the
list at both of its ends, for a group, and for a text that is nowhere; with the index there, the map again; and the
largest resident size of the process.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

GROUP, GROUPS = 8, 32
LETTERS_A_TOKEN = 4
WORDS = ("so", "therefore", "12 + 7 = 19", "the", "sum", "of", "x^2", "\n", "Größe", "step", "we", "know", "that")
NOWHERE = "a text that is nowhere"


def make_run(folder: Path, completions: int, tokens: int) -> None:
    """A run of that many completions in steps of 32 groups of 8, each of `tokens` tokens, some 4 letters a token."""
    drawn = random.Random(0)
    texts = [made_text(drawn, tokens * LETTERS_A_TOKEN) for _ in range(16)]
    steps = max(completions // (GROUP * GROUPS), 1)
    (folder / "samples").mkdir(parents=True)
    with (folder / "metrics.jsonl").open("w") as metrics:
        for step in range(1, steps + 1):
            share = step / steps
            rows = {f"made/{number}": drawn.random() for number in range(80)}
            row = {"step": step, "reward/mean": share, "count/completions": GROUP * GROUPS, **rows}
            metrics.write(json.dumps(row) + "\n")
            write_step(folder / "samples" / f"step_{step}.jsonl", step, completions // steps, share, texts, drawn)


def made_text(drawn: random.Random, letters: int) -> str:
    words: list[str] = []
    length = 0
    while length < letters:
        words.append(drawn.choice(WORDS))
        length += len(words[-1]) + 1
    return " ".join(words)


def write_step(path: Path, step: int, count: int, share: float, texts: list[str], drawn: random.Random) -> None:
    with path.open("w") as file:
        for place in range(count):
            reward = float(drawn.random() < share)
            row = {
                "group": f"train/{(step * GROUPS + place // GROUP) % 7473}",
                "epoch": 0,
                "index": place % GROUP,
                "source": "made",
                "prompt": "How many apples are left?",
                "text": drawn.choice(texts),
                "ground_truth": "7",
                "reward": reward,
                "reward_parts": {"answer": reward},
                "penalties": {},
                "advantage": reward - share,
                "stop_reason": "stop",
                "length": 2000,
                "versions": [[0, step - 1]],
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


class View:
    """A `shoal view` process on one run."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "shoal.cli", "view", str(folder), "--port", "0"],
            env={**os.environ, "SHOAL_CACHE": str(cache)},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        self.address = self.process.stderr.readline().rpartition(" ")[2].strip()
        self.client = httpx.Client(base_url=self.address, timeout=600)
        self.run = folder.name
        self.peak = 0.0

    def ask(self, name: str, **given: Any) -> Any:
        reply = self.client.get(f"/api/{name}", params={"run": self.run, **given})
        reply.raise_for_status()
        self.peak = max(self.peak, psutil.Process(self.process.pid).memory_info().rss / 2**20)
        return reply.json()

    def until(self, what: Callable[[], bool]) -> float:
        """Seconds until it is so."""
        started = time.perf_counter()
        while not what():
            pass
        return time.perf_counter() - started

    def close(self) -> None:
        self.client.close()
        self.process.terminate()
        self.process.wait(30)


def timed(action: Callable[[], Any]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def measure(folder: Path, cache: Path, completions: int) -> dict[str, float]:
    """What is printed of one size."""
    view = View(folder, cache)
    try:
        view.client.get("/").raise_for_status()
        found = {"first reply": time.perf_counter() - view.started}
        found["curves"] = timed(lambda: (view.ask("overview"), view.ask("metrics", keys="reward/mean")))
        found["first map"] = timed(lambda: view.ask("steps"))
        found["all indexed"] = found["first map"] + view.until(lambda: view.ask("steps")["waiting"] == 0)
        found["list, first page"] = timed(lambda: view.ask("find"))
        found["list, last page"] = timed(lambda: view.ask("find", start=completions - 100))
        found["list by reward"] = timed(lambda: view.ask("find", order="reward"))
        found["a group"] = timed(lambda: view.ask("group", step=1, group=0))
        found["text, first reply"] = timed(lambda: view.ask("find", text=NOWHERE))
        found["text, all looked at"] = view.until(lambda: view.ask("find", text=NOWHERE)["left"] == 0)
    finally:
        peak = view.peak
        view.close()
    view = View(folder, cache)
    try:
        found["map with the index there"] = timed(lambda: view.ask("steps"))
    finally:
        view.close()
    return {**found, "memory, MiB": peak}


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--completions", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    parser.add_argument("--tokens", type=int, default=2000)
    options = parser.parse_args()
    results: dict[int, dict[str, float]] = {}
    for completions in options.completions:
        root = Path(tempfile.mkdtemp(prefix="shoal-view-"))
        try:
            make_run(root / "run", completions, options.tokens)
            results[completions] = measure(root / "run", root / "cache", completions)
        finally:
            shutil.rmtree(root)
    names = list(next(iter(results.values())))
    print(f"| seconds | {' | '.join(f'{size:,} completions' for size in results)} |")
    print(f"|---|{'---|' * len(results)}")
    for name in names:
        print(f"| {name} | {' | '.join(f'{found[name]:.3g}' for found in results.values())} |")


if __name__ == "__main__":
    main()
