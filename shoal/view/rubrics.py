"""Each prompt's criteria over a run: their scores, their spread, what was added and what was given up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shoal.view.groups import RUBRIC_FILE
from shoal.view.lines import number, read_all


def rubrics(run_dir: Path) -> dict[str, Any]:
    """Each prompt's criteria over the steps, from adaptive_rubrics.jsonl."""
    prompts: dict[str, dict[str, Any]] = {}
    for row in read_all(run_dir, RUBRIC_FILE):
        step, name = row.get("step"), row.get("prompt")
        if not isinstance(step, int):
            continue
        prompt = prompts.setdefault(str(name), {"name": str(name), "question": row.get("question"), "steps": []})
        listed = row.get("criteria") if isinstance(row.get("criteria"), list) else []
        criteria = [_criterion(one) for one in listed or [] if isinstance(one, dict)]
        prompt["steps"].append(
            {
                "step": step,
                "criteria": criteria,
                "rewards": [number(one) for one in row.get("rewards") or []],
                "added": [str(one.get("title")) for one in row.get("added") or [] if isinstance(one, dict)],
                "dropped": [str(key) for key in row.get("to_inactive") or []],
            }
        )
    for prompt in prompts.values():
        prompt["steps"].sort(key=lambda one: one["step"])
    return {"prompts": list(prompts.values())}


def _criterion(one: dict[str, Any]) -> dict[str, Any]:
    scores = [known for score in one.get("scores") or [] if (known := number(score)) is not None]
    mean = sum(scores) / len(scores) if scores else None
    spread = (sum((score - mean) ** 2 for score in scores) / len(scores)) ** 0.5 if mean is not None else None
    return {
        "key": str(one.get("key")),
        "title": str(one.get("title")),
        "description": str(one.get("description", "")),
        "weight": number(one.get("weight")),
        "origin": str(one.get("origin", "")),
        "mean": mean,
        "spread": spread,
        "count": len(scores),
    }
