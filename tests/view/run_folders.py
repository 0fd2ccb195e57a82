"""Run folders made by hand, small and of known numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def row(group: str, index: int, reward: float | None, **more: Any) -> Row:
    """One completion as samples hold it."""
    return {
        "group": group,
        "epoch": 0,
        "index": index,
        "source": "made",
        "prompt": f"what is {group}?",
        "text": f"it is {index}",
        "ground_truth": "0",
        "reward": reward,
        "reward_parts": {"answer": reward},
        "penalties": {},
        "advantage": None if reward is None else reward - 0.5,
        "stop_reason": "stop",
        "length": 3 + index,
        "versions": [[0, 1]],
        **more,
    }


def write_lines(path: Path, rows: list[Row]) -> Path:
    """JSON lines, as the monitor writes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows), encoding="utf-8")
    return path


def write_samples(folder: Path, step: int, rows: list[Row], kind: str = "samples") -> Path:
    """A file of samples, or of an evaluation."""
    return write_lines(folder / kind / f"step_{step}.jsonl", rows)


def group(name: str, rewards: list[float | None], **more: Any) -> list[Row]:
    """A group's completions."""
    return [row(name, index, reward, **more) for index, reward in enumerate(rewards)]


def small_run(folder: Path) -> Path:
    """Two steps of four groups each: mixed, all right, all wrong, rewards missing; and their metrics."""
    for step in (1, 2):
        groups = [
            *group(f"mixed/{step}", [1.0, 0.0, 0.0, None]),
            *group("right", [1.0, 1.0]),
            *group("wrong", [0.0, 0.0], stop_reason="length"),
            *group("missing", [None, None]),
        ]
        write_samples(folder, step, groups)
    rows = [{"step": 0, "eval/accuracy": 0.25}]
    rows += [{"step": step, "reward/mean": step / 4, "count/completions": 10, "seconds/step": 1.5} for step in (1, 2)]
    write_lines(folder / "metrics.jsonl", rows)
    return folder
