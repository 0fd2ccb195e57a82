"""What a step's scores say of its criteria."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from shoal.rewards.rubrics.buffer import Scored
from shoal.rewards.rubrics.rubric import Criterion, weighted_sum

Scores = dict[str, float | None]
"""Scores of one completion by the criterion's key, from 0 to 1; None where the verdict is missing."""


@dataclass
class Judged:
    """A group's completions under its criteria: `scores` one entry a completion, in order."""

    criteria: tuple[Criterion, ...]
    scores: list[Scores]

    def column(self, criterion: Criterion) -> list[float]:
        """The known scores of a criterion."""
        return [score for row in self.scores if (score := row[criterion.key]) is not None]

    def raw(self) -> list[float | None]:
        """Each completion's score before any normalisation; None where a verdict is missing."""
        return [None if None in row.values() else weighted_sum(known(row), self.criteria) for row in self.scores]


def known(row: Scores) -> dict[str, float]:
    """The scores that are there."""
    return {key: score for key, score in row.items() if score is not None}


def scored(judged: Judged, step: int) -> dict[str, Scored]:
    """How each criterion did over the group's completions, by key; those without any score are left out."""
    columns = {criterion.key: judged.column(criterion) for criterion in judged.criteria}
    return {key: Scored(step, fmean(column), _std(column), len(column)) for key, column in columns.items() if column}


def normalized(groups: Sequence[Judged]) -> list[list[float | None]]:
    """Each completion's score from criteria shifted to mean 0 and scaled to deviation 1 over the step's completions
    that were judged by them; a criterion whose scores are all equal counts 0. What is normalised is the judge's score,
    without its weight: a flaw keeps its sign."""
    columns = by_criterion(groups)
    shift = {key: (fmean(column), _std(column)) for key, column in columns.items()}

    def scaled(row: Mapping[str, float]) -> dict[str, float]:
        return {key: (s - shift[key][0]) / shift[key][1] if shift[key][1] else 0.0 for key, s in row.items()}

    return [
        [None if None in row.values() else weighted_sum(scaled(known(row)), judged.criteria) for row in judged.scores]
        for judged in groups
    ]


def by_criterion(groups: Sequence[Judged]) -> dict[str, list[float]]:
    """The known scores of each criterion over all groups that have it, by key."""
    columns: dict[str, list[float]] = defaultdict(list)
    for judged in groups:
        for criterion in judged.criteria:
            columns[criterion.key] += judged.column(criterion)
    return {key: column for key, column in columns.items() if column}


def criterion_metrics(groups: Sequence[Judged]) -> dict[str, float]:
    """Over pairs of a prompt and a criterion with a known score: `rubric/criteria` (their number),
    `rubric/criterion_mean` and `/criterion_std` (means of the pairs' means and population deviations),
    `rubric/all_zero`, `rubric/all_equal` (shares whose known scores are all 0; all equal).
    Over completions with a score: `rubric/nonzero_advantage`, the share whose score differs from its group's mean.
    Of each general criterion, over all completions: `rubric/<title>/mean` and `/std`."""
    columns = [column for judged in groups for one in judged.criteria if (column := judged.column(one))]
    metrics = {"rubric/criteria": float(len(columns))}
    if columns:
        metrics["rubric/criterion_mean"] = fmean(map(fmean, columns))
        metrics["rubric/criterion_std"] = fmean(map(_std, columns))
        metrics["rubric/all_zero"] = fmean(not any(column) for column in columns)
        metrics["rubric/all_equal"] = fmean(min(column) == max(column) for column in columns)
    raws = [[score for score in judged.raw() if score is not None] for judged in groups]
    differing = [min(raw) != max(raw) and score != fmean(raw) for raw in raws for score in raw]
    if differing:
        metrics["rubric/nonzero_advantage"] = fmean(differing)
    everywhere = by_criterion(groups)
    for criterion in {one.key: one for judged in groups for one in judged.criteria if one.origin == "general"}.values():
        if criterion.key in everywhere:
            metrics[f"rubric/{criterion.title}/mean"] = fmean(everywhere[criterion.key])
            metrics[f"rubric/{criterion.title}/std"] = _std(everywhere[criterion.key])
    return metrics


def direction_agreement(groups: Sequence[Judged]) -> dict[str, float]:
    """Pearson's correlation of a criterion's scores, times the sign of its weight, with the raw score of the whole
    rubric, over the step's completions that it judged: of each general criterion under its title, and the mean over all
    criteria. A criterion that never varies, or whose scores come with equal raw ones, has none."""
    pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    criteria: dict[str, Criterion] = {}
    for judged in groups:
        for row, raw in zip(judged.scores, judged.raw(), strict=True):
            for criterion in judged.criteria if raw is not None else ():
                sign = float(np.sign(criterion.weight))
                pairs[criterion.key].append((sign * (row[criterion.key] or 0.0), raw or 0.0))
                criteria[criterion.key] = criterion
    found = {key: r for key, points in pairs.items() if (r := _correlation(points)) is not None}
    metrics = {
        f"rubric/{criteria[key].title}/direction": r for key, r in found.items() if criteria[key].origin == "general"
    }
    return metrics | ({"rubric/direction": fmean(found.values())} if found else {})


def _std(values: Sequence[float]) -> float:
    """Population deviation, exactly 0 where all are equal."""
    return 0.0 if min(values) == max(values) else float(np.std(values))


def _correlation(points: Sequence[tuple[float, float]]) -> float | None:
    first, second = zip(*points, strict=True)
    if not _std(first) or not _std(second):
        return None
    return float(np.corrcoef(first, second)[0, 1])
