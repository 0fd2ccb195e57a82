"""Draws docs/async.svg and prints the table of docs/async.md, both by the simulation that --dry-run uses."""

from __future__ import annotations

from pathlib import Path
from random import Random

from shoal.rollout.simulation import Flow, Lengths, Outcome, simulate

GROUPS, SIZE, STEP_SECONDS, STEPS = 8, 8, 40.0, 1500
LENGTHS = Lengths(median=12.0, size=SIZE)
ROWS = ((1, 1), (2, 2), (4, 1), (4, 2), (4, 4), (8, 2))
BOUNDS = range(9)
LEADS = {"lead 1": lambda bound: min(bound, 1), "lead 2": lambda bound: min(bound, 2), "lead = max_staleness": int}
COLORS = ("#1f77b4", "#2ca02c", "#d62728")
WIDTH, HEIGHT, LEFT, TOP = 300, 200, 48, 34


def outcome(bound: int, lead: int) -> Outcome:
    """One simulated run; the same random lengths every time."""
    random = Random(0)
    return simulate(
        Flow(GROUPS, bound, lead), lambda number: LENGTHS.fate(random), steps=STEPS, step_seconds=STEP_SECONDS
    )


def panel(left: int, title: str, curves: list[list[float]], most: float) -> list[str]:
    """Axes and one line for each curve, over the bound."""
    x = [left + WIDTH * bound / max(BOUNDS) for bound in BOUNDS]
    bottom = TOP + HEIGHT
    found = [f'<text x="{left}" y="{TOP - 14}" font-weight="bold">{title}</text>']
    for tick in range(int(most) + 1):
        y = bottom - HEIGHT * tick / most
        found.append(f'<path d="M{left} {y:.0f}h{WIDTH}" stroke="#ddd"/>')
        found.append(f'<text x="{left - 8}" y="{y + 4:.0f}" text-anchor="end">{tick}</text>')
    found += [
        f'<text x="{one:.0f}" y="{bottom + 18}" text-anchor="middle">{bound}</text>' for bound, one in enumerate(x)
    ]
    found.append(f'<text x="{left + WIDTH / 2:.0f}" y="{bottom + 38}" text-anchor="middle">source.max_staleness</text>')
    for curve, color in zip(curves, COLORS, strict=True):
        points = " ".join(
            f"{one:.1f},{bottom - HEIGHT * value / most:.1f}" for one, value in zip(x, curve, strict=True)
        )
        found.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
    return found


def main() -> None:
    """Writes the picture beside the page."""
    sync = outcome(0, 0).seconds
    runs = {name: [outcome(bound, lead(bound)) for bound in BOUNDS] for name, lead in LEADS.items()}
    right = LEFT + WIDTH + 80
    lines = panel(LEFT, "Speed (times sync)", [[sync / one.seconds for one in row] for row in runs.values()], 4)
    lines += panel(right, "Mean staleness (versions)", [[one.mean_age for one in row] for row in runs.values()], 8)
    for number, (name, color) in enumerate(zip(runs, COLORS, strict=True)):
        y = TOP + 14 + 18 * number
        lines.append(f'<path d="M{right + 14} {y - 4}h24" stroke="{color}" stroke-width="2"/>')
        lines.append(f'<text x="{right + 44}" y="{y}">{name}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{right + WIDTH + 20}" height="{TOP + HEIGHT + 50}" '
    style = 'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
    page = Path(__file__).parents[1] / "docs" / "async.svg"
    page.write_text("\n".join([head + style, *lines, "</svg>"]) + "\n", encoding="utf-8")
    for bound, lead in ROWS:
        one = outcome(bound, lead)
        print(f"| {bound} | {lead} | {sync / one.seconds:.2f} | {one.mean_age:.2f} | {max(one.ages)} |")


if __name__ == "__main__":
    main()
