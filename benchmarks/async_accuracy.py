"""Accuracy of `source=async` beside `source=sync` after equal numbers of samples: the built-in task, several seeds.

    python benchmarks/async_accuracy.py --folder /path/for/runs

Runs what is not in the folder yet, one run after another; prints the table of RESULTS.md and draws
docs/async-accuracy.svg. Each run takes about a minute on two cores.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean

from async_picture import DOCS, GAP, LEFT, TOP, WIDTH, draw, legend, panel
from async_vs_sync import APART, QUIET

from shoal.api import train
from shoal.config import load_config

SEEDS = (0, 1, 2)
STEPS, EVERY = 100, 10
RUNS = {
    "sync": ["source=sync", "algorithm.correction=token_truncate"],
    "max_staleness 1, lead 1": ["source=async", "source.max_staleness=1"],
    "max_staleness 2, lead 2": ["source=async", "source.max_staleness=2", "source.lead=2"],
    "max_staleness 4, lead 1": ["source=async", "source.max_staleness=4"],
    "max_staleness 4, lead 4": ["source=async", "source.max_staleness=4", "source.lead=4"],
    "max_staleness 4, lead 4, no correction": ["source=async", "source.max_staleness=4", "source.lead=4"],
}
BARE = "no correction"


def accuracies(name: str, seed: int, folder: Path) -> dict[int, float]:
    """By step, the held-out accuracy of one run, which is made where it is not there yet."""
    if not (folder / "summary.json").exists():
        cfg = load_config(
            "story",
            [
                *APART,
                *QUIET,
                *RUNS[name],
                f"run.seed={seed}",
                f"run.steps={STEPS}",
                f"evaluation.every={EVERY}",
                "evaluation.at_start=true",
                "evaluation.prompts=512",
            ],
        )
        if BARE in name:
            cfg.algorithm.correction = "none"  # what a configuration with source=async may not say
        train(cfg, folder)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["eval/accuracy"] for row in rows if "eval/accuracy" in row}


def staleness(folder: Path) -> float:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return fmean(row.get("async/staleness_mean", 0.0) for row in rows if "reward/mean" in row)


def main() -> None:
    """Writes the picture beside the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    curves: dict[str, list[dict[int, float]]] = {name: [] for name in RUNS}
    ages: dict[str, list[float]] = {name: [] for name in RUNS}
    for seed in SEEDS:
        for name in RUNS:
            folder = options.folder / f"{name} {seed}".replace(" ", "_").replace(",", "")
            curves[name].append(accuracies(name, seed, folder))
            ages[name].append(staleness(folder))
    print("| run | mean staleness | " + " | ".join(f"after {step} steps" for step in (30, 50, STEPS)) + " | by seed |")
    for name, runs in curves.items():
        means = " | ".join(f"{fmean(run[step] for run in runs):.3f}" for step in (30, 50, STEPS))
        print(f"| {name} | {fmean(ages[name]):.2f} | {means} | {', '.join(f'{run[STEPS]:.3f}' for run in runs)} |")
    steps = range(0, STEPS + 1, EVERY)
    means = [[fmean(run[step] for run in runs) for step in steps] for runs in curves.values()]
    lines = panel(LEFT, "Held-out accuracy", "step (256 completions each)", steps, means, [0, 0.2, 0.4, 0.6, 0.8, 1])
    lines += legend(LEFT + WIDTH + GAP // 2, TOP + 14, list(RUNS))
    draw(DOCS / "async-accuracy.svg", LEFT + 2 * WIDTH + GAP // 2, lines)


if __name__ == "__main__":
    main()
