"""Asking a scripted judge under changed keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judge_server import JudgeServer, Script, between, mark

from effects.made import one_group
from shoal.config import ShoalConfig
from shoal.rewards.scorer import Scorer


@dataclass
class Outcome:
    """The rewards of the last group, its metrics, what the server saw, and the scorer, which is closed."""

    rewards: list[float | None]
    metrics: dict[str, float]
    server: JudgeServer
    scorer: Scorer


def ask(
    settings: Callable[..., ShoalConfig],
    changes: dict[str, Any],
    *texts: str,
    verifier: str = "judge",
    script: Script = lambda text: mark(5),
    ground_truth: Any = "4",
    steps: int = 1,
    folder: Path | None = None,
) -> Outcome:
    """Scores a group of `texts` in each of `steps` training steps."""
    with JudgeServer(script) as server:
        base = {"reward.verifiers": {verifier: 1.0}, "reward.judge.base_url": server.url, "reward.judge.backoff": 0.01}
        scorer = Scorer(settings({**base, **changes}).reward, {}, folder=folder)
        try:
            for step in range(1, steps + 1):
                group = one_group(*texts, ground_truth=ground_truth)
                metrics = scorer.score([group], step).metrics()
        finally:
            scorer.close()
    return Outcome(group.rewards, metrics, server, scorer)


def letters(text: str) -> str:
    """Grades the criterion `has X` by how often an answer has the letter X; writes the criteria `has x`, `has y`."""
    if "<response_1>" in text:
        made = [{"title": letter, "description": f"has {letter}"} for letter in "xy"]
        return json.dumps({"positive_rubrics": made, "negative_rubrics": []})
    letter = between(text, "criterion").partition("has ")[2]
    return json.dumps({"score": min(between(text, "answer_to_check").count(letter), 2)})


def rubrics(**weights: float) -> dict[str, Any]:
    """A ground truth with a criterion for each letter."""
    rows = [{"title": name, "description": f"has {name}", "weight": weight} for name, weight in weights.items()]
    return {"query": "Spell it.", "rubrics": rows}
