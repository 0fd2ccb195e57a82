"""Held-out prompts over the evaluations of a run: which were solved, lost again, or never solved."""

from __future__ import annotations

from typing import Any

from shoal.monitor.samples import EVALUATIONS
from shoal.view.groups import short
from shoal.view.index import SampleIndex


def evaluations(index: SampleIndex) -> dict[str, Any]:
    """Each held-out prompt over the evaluations: right ones and completions, mean reward, where its group stands."""
    with index.lock:
        rows = index.connection.execute(
            "SELECT step, place, name, source, rights, count, mean, known FROM groups WHERE kind = ? "
            "ORDER BY step, place",
            (EVALUATIONS,),
        ).fetchall()
    steps = sorted({row[0] for row in rows})
    column = {step: number_ for number_, step in enumerate(steps)}
    prompts: dict[str, dict[str, Any]] = {}
    for step, place, name, source, rights, count, mean, known in rows:
        prompt = prompts.setdefault(name, {"name": name, "source": source, "cells": [None] * len(steps)})
        prompt["cells"][column[step]] = [place, rights, count, short(mean), known]
    for prompt in prompts.values():
        prompt["story"] = story(prompt["cells"])
    return {"steps": steps, "prompts": list(prompts.values()), "waiting": index.waiting}


def story(cells: list[list[Any] | None]) -> str:
    """What became of a prompt: `always`, `never`, `solved` (wrong at first, right at the end), `lost` (right at some
    time, not at the end), `back` (right at first and at the end, not always), `unsteady`. Right is: more than half."""
    seen = [cell[1] * 2 > cell[2] for cell in cells if cell is not None]
    if not seen:
        return "never"
    if all(seen):
        return "always"
    if not any(seen):
        return "never"
    if not seen[-1]:
        return "lost"
    return "back" if seen[0] else "solved"
