"""Criteria that the judge writes in view of a group's own completions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any

from jinja2 import Template

from shoal.config.nodes.rubric import RubricConfig
from shoal.rewards.answers.thinking import answering_part
from shoal.rewards.judging.client import Question
from shoal.rewards.judging.replies import read_object
from shoal.rewards.rubrics.rubric import Criterion, read_criteria
from shoal.rewards.verifiers.strings import tagged_answer

LEAST_ANSWERS = 2
SIGNS = {"positive_rubrics": 1.0, "negative_rubrics": -1.0}


def generation_question(
    template: Template,
    options: RubricConfig,
    question: str,
    responses: Sequence[str],
    existing: Sequence[Criterion],
    step: int,
) -> Question:
    """Asks for criteria that are in none of the existing ones: the general, persistent and active ones."""
    text = template.render(question=question, responses=list(responses), existing=list(existing))
    return Question(
        text,
        read=lambda reply: read_generated(reply, step),
        made_up=lambda share: json.dumps({name: [] for name in SIGNS}),
        model=options.generator_model,
    )


def shown_responses(options: RubricConfig, texts: Sequence[str], seed: str) -> list[str]:
    """What the generator sees: whole completions; or answers, in an order drawn from `seed`, as many as hold
    `answer_words` words together and at least two."""
    if options.full_responses:
        return list(texts)
    answers = [tagged_answer(answering_part(text)) or text for text in texts]
    Random(seed).shuffle(answers)
    shown: list[str] = []
    words = 0
    for answer in answers:
        words += len(answer.split())
        if words > options.answer_words and len(shown) >= LEAST_ANSWERS:
            break
        shown.append(answer)
    return shown


def read_generated(reply: str, step: int) -> list[Criterion]:
    """The criteria of a reply: weight 1 for merits and -1 for flaws. Lists may be empty.

    Raises:
        ValueError: it is not what was asked for.
    """
    found: dict[str, Any] = read_object(reply, "positive_rubrics")
    criteria: list[Criterion] = []
    for name, weight in SIGNS.items():
        rows = found.get(name, [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"{name} is no list of criteria")
        criteria += read_criteria([{**row, "weight": weight} for row in rows], "adaptive", step)
    return criteria
