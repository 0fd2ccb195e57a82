"""Samples a second of `source=async` beside `source=sync`: the built-in task, the engine in a process of its own.

    python benchmarks/async_vs_sync.py --steps 40 --folder /path/for/runs

Prints for each run: completions a second from the second half of its steps, mean and largest staleness, reward of the
last ten of them; and what would be ideal: (g + t) / max(g, t) times sync, of the sync run's generation and training
seconds g and t. Two cores, one thread each. The last steps do not count: an asynchronous run starts no more groups for
them, so that the learner has the machine to itself.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

from shoal.api import train
from shoal.config import load_config

APART = ["engine.processes=1", "weight_sync=broadcast", "runtime.threads=1", "runtime.target=cpu"]
QUIET = [
    "run.preflight=false",
    "evaluation.at_start=false",
    "evaluation.at_end=false",
    "evaluation.every=0",
    "checkpoint.every=0",
    "checkpoint.save_final=false",
    "monitor.progress=off",
    "monitor.tensorboard=false",
    "monitor.curve=false",
    "monitor.samples_every=0",
]
RUNS = {
    "sync": ["source=sync", "algorithm.correction=token_truncate"],
    "async S=1 L=1": ["source=async", "source.max_staleness=1"],
    "async S=4 L=1": ["source=async", "source.max_staleness=4"],
    "async S=4 L=1, keep": ["source=async", "source.max_staleness=4", "weight_sync.in_flight=keep"],
}


LAST = 2  # steps: as many as the runs are ahead, and one


def measured(overrides: list[str], folder: Path) -> list[dict[str, Any]]:
    """The rows of the second half of a run's steps, but the last."""
    train(load_config("story", [*APART, *QUIET, *overrides]), folder)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "reward/mean" in row]
    return steps[len(steps) // 2 : -LAST]


def speed(rows: list[dict[str, Any]]) -> float:
    """Completions a second over these steps."""
    seconds = rows[-1]["seconds/total"] - rows[0]["seconds/total"]
    return sum(row["count/completions"] for row in rows[1:]) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    base = ideal = 0.0
    for name, overrides in RUNS.items():
        rows = measured([*overrides, f"run.steps={options.steps}"], options.folder / name.replace(" ", "_"))
        now = speed(rows)
        if name == "sync":
            generation = fmean(row["seconds/rollout"] + row.get("seconds/reward", 0.0) for row in rows)
            training = fmean(row["seconds/train"] + row["seconds/sync"] for row in rows)
            base, ideal = now, (generation + training) / max(generation, training)
            print(f"sync: {generation:.2f} s of generation and {training:.2f} s of training a step; ideal x{ideal:.2f}")
        mean = fmean(row.get("async/staleness_mean", 0.0) for row in rows)
        most = max(row.get("staleness/max", 0.0) for row in rows)
        reward = fmean(row["reward/mean"] for row in rows[-10:])
        print(
            f"{name}: {now:.1f} completions/s, x{now / base:.2f} of sync ({now / base / ideal:.0%} of the ideal), "
            f"staleness {mean:.2f} on average, {most:.0f} at most, reward {reward:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
