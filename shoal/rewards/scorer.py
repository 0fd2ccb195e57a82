"""Scoring completions: every verifier on every completion, and what came of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from inspect import Parameter, signature
from logging import getLogger
from types import TracebackType
from typing import Any

from shoal.config.data import RewardConfig
from shoal.errors import ConfigError, TrainingError
from shoal.rewards.base import Submission, Verifier, VerifierEntry
from shoal.rewards.code import check_code
from shoal.rewards.deadline import DeadlinePool
from shoal.rewards.lookup import find_verifier
from shoal.rewards.shaping import LENGTH_PENALTY, length_penalty, shaped_reward, verified_sum
from shoal.rewards.verdict import Verdict, judge
from shoal.types import FORMAT_PART, Completion, Group, Prompt, StopReason

logger = getLogger(__name__)

MISSING = "missing"
"""Where a completion's `info` says why parts of its reward are missing: reasons by verifier."""
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
        self.always = [FORMAT_PART] if reward.format.pattern else []
        if self.always and FORMAT_PART in self.weights:
            raise ConfigError(
                "the format is rewarded twice: leave out reward.format.pattern or reward.verifiers.format"
            )
        for name in [*self.weights, *self.always]:
            self._entry(name)
        check_options(reward.options, self.entries)

    def score(self, groups: Sequence[Group]) -> ScoreReport:
        """Sets `reward`, `reward_parts` and the length penalty of every completion, and reports.

        The reward is made of the parts by `shaped_reward`, and None where a part is missing. Completions that the
        engine did not finish get none. `ScoreReport.check` stops a run in which too many are missing.
        """
        report = ScoreReport(max_missing=self.reward.max_missing)
        asked: list[tuple[Completion, VerifierEntry, str, Submission]] = []
        for group in groups:
            verifiers = (group.prompt.verifiers if group.prompt else []) or list(self.weights)
            names = [*(verifiers if self.reward.verify else []), *self.always]
            for completion in group.completions:
                report.completions += 1
                completion.reward_parts = {}
                completion.reward = None
                completion.info.pop(MISSING, None)
                if completion.stop_reason in UNFINISHED:
                    report.unfinished += 1
                    continue
                asked += [
                    (completion, self._entry(name), name, self._submission(group, completion, name)) for name in names
                ]
        for (completion, _, name, _), verdict in zip(asked, self._verdicts(asked), strict=True):
            completion.reward_parts[name] = verdict.score
            if verdict.score is None:
                completion.info.setdefault(MISSING, {})[name] = verdict.reason
            _count(report.verifiers[name], verdict)
        for group in groups:
            for completion in group.completions:
                if completion.stop_reason not in UNFINISHED:
                    completion.reward = shaped_reward(completion, self.weights, self.reward)
                    penalty = length_penalty(completion, group.prompt.source if group.prompt else "", self.reward)
                    if self.reward.length.coef:
                        completion.penalties[LENGTH_PENALTY] = penalty
                report.missing += completion.reward is None
        if report.missing:
            logger.warning("%d of %d rewards missing: %s", report.missing, report.completions, report.explanation())
        return report

    def verified(self, completion: Completion) -> float | None:
        """The verifiers' weighted sum for a scored completion, before scale, format and length."""
        return verified_sum(completion, self.weights, self.reward)

    def close(self) -> None:
        """Ends the worker processes."""
        if self.pool is not None:
            self.pool.close()

    def _entry(self, name: str) -> VerifierEntry:
        if name not in self.entries:
            self.entries[name] = find_verifier(name)
            if name == "code":
                check_code(self.reward.code)
        return self.entries[name]

    def __enter__(self) -> Scorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _submission(self, group: Group, completion: Completion, name: str) -> Submission:
        prompt = group.prompt
        options = self.reward.options.get(name, {})
        if name in self.always:
            options = {"pattern": self.reward.format.pattern}
        if name == "code":
            options = asdict(self.reward.code)
        return Submission(
            text=completion.text,
            ground_truth=own_ground_truth(prompt, name) if prompt else None,
            messages=prompt.messages if prompt else [],
            stop_reason=completion.stop_reason,
            num_tokens=completion.num_sampled,
            info=completion.info,
            options=dict(options),
        )

    def _verdicts(self, asked: Sequence[tuple[Completion, VerifierEntry, str, Submission]]) -> list[Verdict]:
        """Bounded verifiers are called here, the others in worker processes."""
        elsewhere = [(import_path(entry), submission) for _, entry, _, submission in asked if not entry.bounded]
        answers = iter(self._pool_for(elsewhere).judge(elsewhere) if elsewhere else ())
        return [
            judge(entry.function, submission) if entry.bounded else next(answers) for _, entry, _, submission in asked
        ]

    def _pool_for(self, jobs: Sequence[tuple[str, Submission]]) -> DeadlinePool:
        """The pool, made anew where a row names a verifier that it has not imported."""
        paths = {path for path, _ in jobs}.union(*(entry.needs for entry in self.entries.values()))
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


def check_options(options: Mapping[str, Any], entries: Mapping[str, VerifierEntry]) -> None:
    """Accepts `reward.options` that the verifiers take.

    Raises:
        ConfigError: options of a verifier that is not asked, or that it does not know.
    """
    for name, given in options.items():
        if name not in entries:
            entries = {**entries, name: find_verifier(name)}
        known = [
            key
            for key, value in signature(entries[name].function).parameters.items()
            if value.kind is Parameter.KEYWORD_ONLY
        ]
        for key in given:
            if key not in known:
                there = f"it has {', '.join(known)}" if known else "it has none"
                raise ConfigError(f"reward.options.{name}.{key}: verifier {name!r} has no such option; {there}")


def own_ground_truth(prompt: Prompt, name: str) -> Any:
    """The ground truth for one verifier: its own where the prompt's is a dict with exactly its verifiers as keys."""
    truth = prompt.ground_truth
    if isinstance(truth, dict) and prompt.verifiers and set(truth) == set(prompt.verifiers):
        return truth.get(name)
    return truth


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


def _count(report: VerifierReport, verdict: Verdict) -> None:
    report.seconds += verdict.seconds
    if verdict.score is None:
        report.reasons[verdict.reason] += 1
    else:
        report.scores.append(verdict.score)
