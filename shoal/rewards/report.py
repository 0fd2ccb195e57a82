"""What scoring did, as metrics and in words."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from shoal.errors import TrainingError
from shoal.rewards.verdict import Verdict


@dataclass
class VerifierReport:
    """What one verifier did in one call of `score`. `reasons` counts why scores are missing."""

    scores: list[float] = field(default_factory=list)
    seconds: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def missing(self) -> int:
        return self.reasons.total()

    def count(self, verdict: Verdict) -> None:
        """Takes in one verdict."""
        self.seconds += verdict.seconds
        if verdict.score is None:
            self.reasons[verdict.reason] += 1
        else:
            self.scores.append(verdict.score)


@dataclass
class ScoreReport:
    """What one call of `score` did. `missing` counts completions without a reward, `unfinished` those among them that
    the engine did not finish, so that no verifier saw them. `judges` are the metrics of verifiers that ask a judge."""

    completions: int = 0
    missing: int = 0
    unfinished: int = 0
    max_missing: float = 1.0
    verifiers: dict[str, VerifierReport] = field(default_factory=lambda: defaultdict(VerifierReport))
    judges: dict[str, float] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """`rewards/missing`: share of completions without a reward. Per verifier: `count` of completions it was asked
        about, `missing` of them without a score (a number); `mean` and `right` (share of exactly 1) over those
        with one; `seconds` of its own time, summed over workers. And `judges`."""
        metrics = {"rewards/missing": self.missing / max(self.completions, 1), **self.judges}
        for name, report in self.verifiers.items():
            known = len(report.scores)
            metrics[f"rewards/{name}/count"] = float(known + report.missing)
            metrics[f"rewards/{name}/missing"] = float(report.missing)
            metrics[f"rewards/{name}/seconds"] = report.seconds
            if known:
                metrics[f"rewards/{name}/mean"] = sum(report.scores) / known
                metrics[f"rewards/{name}/right"] = report.scores.count(1.0) / known
        return metrics

    def add(self, other: ScoreReport) -> None:
        """Counts another call's completions with these. `judges` become the later call's."""
        self.completions += other.completions
        self.missing += other.missing
        self.unfinished += other.unfinished
        self.max_missing = other.max_missing
        self.judges |= other.judges
        for name, theirs in other.verifiers.items():
            mine = self.verifiers[name]
            mine.scores += theirs.scores
            mine.seconds += theirs.seconds
            mine.reasons += theirs.reasons

    def check(self) -> ScoreReport:
        """Gives itself back.

        Raises:
            TrainingError: a larger share of rewards is missing than `reward.max_missing` allows.
        """
        if self.missing > self.max_missing * self.completions:
            raise TrainingError(
                f"{self.missing} of {self.completions} rewards are missing, more than reward.max_missing="
                f"{self.max_missing:g} allows: {self.explanation()}"
            )
        return self

    def explanation(self) -> str:
        """Why rewards are missing, in words; empty where none is."""
        parts = [f"{self.unfinished} completions not finished by the engine"] if self.unfinished else []
        for name, report in self.verifiers.items():
            parts += [f"{name}: {reason} ({_times(count)})" for reason, count in report.reasons.most_common(3)]
        return "; ".join(parts)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
