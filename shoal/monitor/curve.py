"""curve.png: the run in one picture, drawn from metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from shoal.files import write_atomically
from shoal.monitor.rows import read_rows

CURVE_FILE = "curve.png"

BLUE, ORANGE, GREY = "#2563a8", "#d95f02", "#8a8f98"


def smoothed(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Centred mean over `window` values; near the ends over those that there are."""
    kernel = np.ones(min(window, len(values)))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")


def draw_curve(run_dir: Path) -> Path | None:
    """Reward per step (thin), smoothed (bold), evaluations (dots), and below the share of groups without a signal.

    Returns the path of the picture, or None where no step and no evaluation has been recorded.
    """
    rows = read_rows(run_dir)
    if not any("reward/mean" in row or "eval/accuracy" in row for row in rows):
        return None
    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    _draw_reward(top, rows)
    _draw_zero_variance(bottom, rows)
    for axes in (top, bottom):
        axes.margins(x=0.02)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    bottom.set_xlabel("step")
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(run_dir.resolve().name, fontsize=11, color="#444444")
    picture = BytesIO()
    figure.savefig(picture, format="png")
    path = run_dir / CURVE_FILE
    write_atomically(path, picture.getvalue())
    return path


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    array = np.array(points, dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _draw_reward(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    steps, rewards = _points(rows, "reward/mean")
    if len(steps):
        axes.plot(steps, rewards, color=BLUE, alpha=0.3, linewidth=0.9)
        window = max(len(steps) // 15, 1)
        axes.plot(steps, smoothed(rewards, window), color=BLUE, linewidth=2.2, label="training reward")
    steps, accuracies = _points(rows, "eval/accuracy")
    if len(steps):
        axes.plot(steps, accuracies, "o--", color=ORANGE, linewidth=1.2, markersize=7, label="held-out accuracy")
        for step, accuracy in ((steps[0], accuracies[0]), (steps[-1], accuracies[-1])):
            axes.annotate(
                f"{accuracy:.2f}", (step, accuracy), (0, 9), textcoords="offset points", ha="center", color=ORANGE
            )
    axes.set_ylabel("reward, accuracy")
    axes.margins(y=0.12)
    if all(0 <= value <= 1 for value in (*rewards, *accuracies)):
        axes.set_ylim(0, 1.08)
    axes.legend(loc="best", frameon=False)


def _draw_zero_variance(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    steps, shares = _points(rows, "groups/zero_variance")
    if len(steps):
        axes.fill_between(steps, shares, color=GREY, alpha=0.45, linewidth=0, step="mid")
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axes.set_ylabel("groups\nwithout signal", fontsize=8)
