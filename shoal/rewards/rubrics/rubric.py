"""A rubric is criteria with title, description and signed weight: where they are read from and what a score is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Any

from yaml import YAMLError, safe_load

from shoal.errors import ConfigError

BUILT_IN = Path(__file__).parent / "general.yaml"
DEFAULT = "default"
TITLE_WORDS = 6


@dataclass(frozen=True)
class Criterion:
    """One criterion. A negative weight makes it a flaw. `origin` is `general`, `static` (the data's) or `adaptive` (the
    judge's), `born` the training step that it was first used or written in."""

    title: str
    description: str
    weight: float
    origin: str
    born: int = 0

    @cached_property
    def key(self) -> str:
        """Names the criterion by what it says: equal in every prompt and run."""
        return sha256(f"{self.title}\0{self.description}".encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for checkpoints and rows."""
        return asdict(self)


def read_criteria(given: Any, origin: str, born: int = 0) -> tuple[Criterion, ...]:
    """Criteria from a list of objects with `description`, and `title` (else its first words) and `weight` (else 1).

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(given, list):
        raise ValueError(f"rubrics are a list of criteria, not {type(given).__name__}")
    criteria: dict[str, Criterion] = {}
    for number, row in enumerate(given, start=1):
        description = row.get("description") if isinstance(row, dict) else None
        if not isinstance(description, str) or not description.strip():
            raise ValueError(f"criterion {number} has no description")
        title = row.get("title") or " ".join(description.split()[:TITLE_WORDS])
        try:
            weight = float(row.get("weight", 1))
        except (TypeError, ValueError) as error:
            raise ValueError(f"criterion {number} has the weight {row['weight']!r}, which is no number") from error
        if not isfinite(weight):
            raise ValueError(f"criterion {number} has the weight {weight}")
        criterion = Criterion(str(title).strip(), description.strip(), weight, origin, born)
        criteria.setdefault(criterion.key, criterion)
    return tuple(criteria.values())


def read_ground_truth(truth: Any) -> Any:
    """The ground truth, as an object where it is JSON with `rubrics`. Others are no rubric's and stay as they are."""
    if isinstance(truth, str) and "rubrics" in truth:
        try:
            return json.loads(truth)
        except json.JSONDecodeError:
            return truth
    return truth


def static_criteria(truth: Any, born: int = 0) -> tuple[Criterion, ...]:
    """The criteria that a row brings along: `rubrics` of its ground truth; none where it has none.

    Raises:
        ValueError: they cannot be read.
    """
    if not isinstance(truth, dict) or "rubrics" not in truth:
        return ()
    return read_criteria(truth["rubrics"], "static", born)


def general_criteria(given: str | None) -> tuple[Criterion, ...]:
    """The criteria for every prompt.

    Raises:
        ConfigError: the file cannot be read, or is no list of criteria.
    """
    if given is None:
        return ()
    path = BUILT_IN if given == DEFAULT else Path(given)
    try:
        return read_criteria(safe_load(path.read_text(encoding="utf-8")), "general")
    except (OSError, UnicodeDecodeError, YAMLError, ValueError) as error:
        line = " ".join(str(error).split())
        raise ConfigError(
            f"reward.rubric.general={given}: {line}; it is `default`, or a file with a list of criteria, each with "
            "title, description and weight"
        ) from error


def weighted_sum(scores: Mapping[str, float], criteria: Sequence[Criterion]) -> float:
    """Sum of weight x score over the criteria, over the sum of the positive weights (at least 1).

    `scores` are by key, from 0 to 1, or normalised; they hold no weight, so that each weight counts exactly once.
    """
    positive = sum(criterion.weight for criterion in criteria if criterion.weight > 0)
    return sum(criterion.weight * scores[criterion.key] for criterion in criteria) / max(positive, 1.0)
