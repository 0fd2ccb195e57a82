"""Draws docs/async.svg and prints the table of docs/async.md, both by the simulation that --dry-run uses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random

from shoal.rollout.simulation import Flow, Lengths, Outcome, simulate

GROUPS, SIZE, STEP_SECONDS, STEPS = 8, 8, 40.0, 1500
LENGTHS = Lengths(median=12.0, size=SIZE)
ROWS = ((1, 1), (2, 2), (4, 1), (4, 2), (4, 4), (8, 2))
BOUNDS = range(9)
LEADS = {"lead 1": lambda bound: min(bound, 1), "lead 2": lambda bound: min(bound, 2), "lead = max_staleness": int}
COLORS = ("#1f77b4", "#2ca02c", "#d62728", "#9467bd", "#ff7f0e", "#7f7f7f")
WIDTH, HEIGHT, LEFT, TOP = 300, 200, 48, 34
GAP = 80  # between two panels
DOCS = Path(__file__).parents[1] / "docs"


def outcome(bound: int, lead: int) -> Outcome:
    """One simulated run; the same random lengths every time."""
    random = Random(0)
    return simulate(
        Flow(GROUPS, bound, lead), lambda number: LENGTHS.fate(random), steps=STEPS, step_seconds=STEP_SECONDS
    )


def panel(
    left: int,
    title: str,
    under: str,
    x: Sequence[float],
    curves: Sequence[Sequence[float]],
    ticks: Sequence[float],
) -> list[str]:
    """Axes and one line for each curve over `x`; `ticks` are those of y, and its range."""
    low, high = ticks[0], ticks[-1]
    bottom = TOP + HEIGHT

    def across(value: float) -> float:
        return left + WIDTH * (value - x[0]) / (x[-1] - x[0])

    def up(value: float) -> float:
        return bottom - HEIGHT * (value - low) / (high - low)

    found = [f'<text x="{left}" y="{TOP - 14}" font-weight="bold">{title}</text>']
    for tick in ticks:
        found.append(f'<path d="M{left} {up(tick):.0f}h{WIDTH}" stroke="#ddd"/>')
        found.append(f'<text x="{left - 8}" y="{up(tick) + 4:.0f}" text-anchor="end">{tick:g}</text>')
    found += [f'<text x="{across(one):.0f}" y="{bottom + 18}" text-anchor="middle">{one:g}</text>' for one in x]
    found.append(f'<text x="{left + WIDTH / 2:.0f}" y="{bottom + 38}" text-anchor="middle">{under}</text>')
    for curve, color in zip(curves, COLORS, strict=False):
        points = " ".join(f"{across(one):.1f},{up(value):.1f}" for one, value in zip(x, curve, strict=True))
        found.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
    return found


def legend(left: int, top: int, names: Sequence[str]) -> list[str]:
    """A line of its color and the name for each curve."""
    found = []
    for number, (name, color) in enumerate(zip(names, COLORS, strict=False)):
        y = top + 18 * number
        found.append(f'<path d="M{left} {y - 4}h24" stroke="{color}" stroke-width="2"/>')
        found.append(f'<text x="{left + 30}" y="{y}">{name}</text>')
    return found


def draw(file: Path, width: int, lines: Sequence[str]) -> None:
    """Writes a picture of this width."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{TOP + HEIGHT + 50}" '
    style = 'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
    file.write_text("\n".join([head + style, *lines, "</svg>"]) + "\n", encoding="utf-8")


def main() -> None:
    """Writes the picture beside the page."""
    sync = outcome(0, 0).seconds
    runs = {name: [outcome(bound, lead(bound)) for bound in BOUNDS] for name, lead in LEADS.items()}
    right = LEFT + WIDTH + GAP
    speed = [[sync / one.seconds for one in row] for row in runs.values()]
    age = [[one.mean_age for one in row] for row in runs.values()]
    lines = panel(LEFT, "Speed (times sync)", "source.max_staleness", BOUNDS, speed, range(5))
    lines += panel(right, "Mean staleness (versions)", "source.max_staleness", BOUNDS, age, range(9))
    lines += legend(right + 14, TOP + 14, list(runs))
    draw(DOCS / "async.svg", right + WIDTH + 20, lines)
    for bound, lead in ROWS:
        one = outcome(bound, lead)
        print(f"| {bound} | {lead} | {sync / one.seconds:.2f} | {one.mean_age:.2f} | {max(one.ages)} |")


if __name__ == "__main__":
    main()
