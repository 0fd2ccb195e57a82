"""Groups for verifiers that ask a judge, and scripts of judges that count."""

from __future__ import annotations

import json
from typing import Any

from judge_server import JudgeServer, between

from shoal.config.nodes.data import RewardConfig
from shoal.config.nodes.judge import JudgeConfig
from shoal.config.nodes.rubric import RubricConfig
from shoal.types import Completion, Group, Prompt, Segment, StopReason


def group(*texts: str, truth: Any = None, id: str = "p", question: str = "How many?") -> Group:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": question}]
    prompt = Prompt(id=id, token_ids=[1], ground_truth=truth, messages=messages)
    segment = Segment([1], [2, 3], [0, 0], [True, True])
    return Group(id, [Completion([segment], StopReason.STOP, text=text) for text in texts], prompt)


def reward(server: JudgeServer, verifier: str, judge: dict[str, Any] | None = None, **rubric: Any) -> RewardConfig:
    options = {"base_url": server.url, "backoff": 0.01, "retries": 1, "timeout": 60.0, **(judge or {})}
    return RewardConfig(
        verifiers={verifier: 1.0}, max_missing=1.0, judge=JudgeConfig(**options), rubric=RubricConfig(**rubric)
    )


def row(title: str, description: str = "", weight: float = 1.0) -> dict[str, Any]:
    return {"title": title, "description": description or f"has {title}", "weight": weight}


def count_letters(text: str) -> str:
    """Grades the criterion `has X` by how often the letter X is in the answer: 0, 1 or 2; writes no criteria."""
    if "<response_1>" in text:
        return json.dumps({"positive_rubrics": [], "negative_rubrics": []})
    letter = between(text, "criterion").partition("has ")[2]
    return json.dumps({"score": min(between(text, "answer_to_check").count(letter), 2)})
