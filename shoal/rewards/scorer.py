"""Scoring completions: every verifier on every completion, and what came of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from logging import getLogger

from shoal.config.data import RewardConfig
from shoal.errors import ConfigError, TrainingError
from shoal.rewards.base import Submission, Verifier, VerifierEntry
from shoal.rewards.deadline import DeadlinePool
from shoal.rewards.lookup import find_verifier
from shoal.rewards.verdict import Verdict, judge
from shoal.types import Completion, Group, StopReason

logger = getLogger(__name__)

UNFINISHED = (StopReason.ABORT, StopReason.ERROR)


@dataclass
class VerifierReport:
    """What one verifier did in one call of `score`. `reasons` counts why scores are missing."""

    scores: list[float] = field(default_factory=list)
    seconds: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def missing(self) -> int:
        return self.reasons.total()


@dataclass
class ScoreReport:
    """What one call of `score` did. `missing` counts completions without a reward, `unfinished` those among them that
    the engine did not finish, so that no verifier saw them."""

    completions: int = 0
    missing: int = 0
    unfinished: int = 0
    max_missing: float = 1.0
    verifiers: dict[str, VerifierReport] = field(default_factory=lambda: defaultdict(VerifierReport))

    def metrics(self) -> dict[str, float]:
        """`rewards/missing`: share of completions without a reward. Per verifier: `count` of completions it was asked
        about, `missing` of them without a score (a number); `mean` and `right` (share of exactly 1) over those
        with one; `seconds` of its own time, summed over workers."""
        metrics = {"rewards/missing": self.missing / max(self.completions, 1)}
        for name, report in self.verifiers.items():
            known = len(report.scores)
            metrics[f"rewards/{name}/count"] = float(known + report.missing)
            metrics[f"rewards/{name}/missing"] = float(report.missing)
            metrics[f"rewards/{name}/seconds"] = report.seconds
            if known:
                metrics[f"rewards/{name}/mean"] = sum(report.scores) / known
                metrics[f"rewards/{name}/right"] = report.scores.count(1.0) / known
        return metrics

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
            parts += [f"{name}: {reason} ({count} times)" for reason, count in report.reasons.most_common(3)]
        return "; ".join(parts)


class Scorer:
    """Judges completions with the configured verifiers, or the task's (`defaults`, name to weight).

    A prompt that names its own verifiers is judged by those, with the configured weight where they have one, else 1.

    `own` are functions by name that are called in this process, so they must return by themselves; where the
    configuration names no verifier, they judge alone, each with weight 1.

    Raises:
        ConfigError: no such verifier.
    """

    def __init__(
        self, reward: RewardConfig, defaults: Mapping[str, float], own: Mapping[str, Verifier] | None = None
    ) -> None:
        self.reward = reward
        self.weights = dict(reward.verifiers or dict.fromkeys(own or {}, 1.0) or defaults)
        self.entries = {name: VerifierEntry(name, function, bounded=True) for name, function in (own or {}).items()}
        self.pool: DeadlinePool | None = None
        for name in self.weights:
            self._entry(name)

    def score(self, groups: Sequence[Group]) -> ScoreReport:
        """Sets `reward` and `reward_parts` of every completion, and reports.

        The reward is the weighted sum of the parts, and None where a part is missing. Completions that the engine
        did not finish get none. `ScoreReport.check` stops a run in which too many are missing.
        """
        report = ScoreReport(max_missing=self.reward.max_missing)
        asked: list[tuple[Completion, VerifierEntry, str, Submission]] = []
        for group in groups:
            names = (group.prompt.verifiers if group.prompt else []) or list(self.weights)
            entries = [(name, self._entry(name)) for name in names]
            for completion in group.completions:
                report.completions += 1
                completion.reward_parts = {}
                completion.reward = None
                if completion.stop_reason in UNFINISHED:
                    report.unfinished += 1
                    report.missing += 1
                    continue
                submission = _submission(group, completion)
                asked += [(completion, entry, name, submission) for name, entry in entries]
        for (completion, _, name, _), verdict in zip(asked, self._verdicts(asked), strict=True):
            completion.reward_parts[name] = verdict.score
            _count(report.verifiers[name], verdict)
        for group in groups:
            for completion in group.completions:
                if completion.reward_parts:
                    completion.reward = self._total(completion.reward_parts)
                    report.missing += completion.reward is None
        if report.missing:
            logger.warning("%d of %d rewards missing: %s", report.missing, report.completions, report.explanation())
        return report

    def close(self) -> None:
        """Ends the worker processes."""
        if self.pool is not None:
            self.pool.close()

    def _total(self, parts: Mapping[str, float | None]) -> float | None:
        total = 0.0
        for name, part in parts.items():
            if part is None:
                return None
            total += self.weights.get(name, 1.0) * part
        return total

    def _entry(self, name: str) -> VerifierEntry:
        if name not in self.entries:
            self.entries[name] = find_verifier(name)
        return self.entries[name]

    def _verdicts(self, asked: Sequence[tuple[Completion, VerifierEntry, str, Submission]]) -> list[Verdict]:
        """Bounded verifiers are called here, the others in worker processes."""
        elsewhere = [(import_path(entry), submission) for _, entry, _, submission in asked if not entry.bounded]
        answers = iter(self._pool_for(elsewhere).judge(elsewhere) if elsewhere else ())
        return [
            judge(entry.function, submission) if entry.bounded else next(answers) for _, entry, _, submission in asked
        ]

    def _pool_for(self, jobs: Sequence[tuple[str, Submission]]) -> DeadlinePool:
        """The pool, made anew where a row names a verifier that it has not imported."""
        paths = {path for path, _ in jobs}
        if self.pool is None or not paths <= set(self.pool.paths):
            known = self.pool.paths if self.pool else []
            self.close()
            self.pool = DeadlinePool(
                sorted(paths.union(known)),
                workers=self.reward.workers,
                timeout=self.reward.timeout,
                memory_gib=self.reward.memory_gib,
            )
        return self.pool


def import_path(entry: VerifierEntry) -> str:
    """Where a worker process finds a verifier.

    Raises:
        ConfigError: it is not a module's function.
    """
    module, name = entry.function.__module__, entry.function.__qualname__
    if module == "__main__" or not name.isidentifier():
        raise ConfigError(
            f"verifier {entry.name!r} runs in a process of its own, which cannot import it from {module}:{name}; "
            "make it a function of a module"
        )
    return f"{module}:{name}"


def _submission(group: Group, completion: Completion) -> Submission:
    return Submission(
        text=completion.text,
        ground_truth=group.prompt.ground_truth if group.prompt else None,
        messages=group.prompt.messages if group.prompt else [],
        stop_reason=completion.stop_reason,
        num_tokens=completion.num_sampled,
        info=completion.info,
    )


def _count(report: VerifierReport, verdict: Verdict) -> None:
    report.seconds += verdict.seconds
    if verdict.score is None:
        report.reasons[verdict.reason] += 1
    else:
        report.scores.append(verdict.score)
