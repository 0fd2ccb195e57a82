"""Scoring completions: every verifier on every completion, and what came of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from logging import getLogger
from pathlib import Path
from types import TracebackType
from typing import Any

from shoal.config.data import RewardConfig
from shoal.errors import ConfigError
from shoal.rewards.base import Submission, Verifier, VerifierEntry
from shoal.rewards.code import check_code
from shoal.rewards.deadline import DeadlinePool
from shoal.rewards.judged import JUDGED, Asked, JudgedVerifier
from shoal.rewards.judging.client import JudgeClient
from shoal.rewards.judging.spending import Spending
from shoal.rewards.lookup import check_options, find_verifier, import_path
from shoal.rewards.report import ScoreReport
from shoal.rewards.shaping import LENGTH_PENALTY, length_penalty, shaped_reward, verified_sum
from shoal.rewards.together import judges_together, verdicts_together
from shoal.rewards.verdict import Verdict, judge_here
from shoal.types import FORMAT_PART, Completion, Group, Prompt, StopReason

logger = getLogger(__name__)

MISSING = "missing"
"""Where a completion's `info` says why parts of its reward are missing: reasons by verifier."""
LOOK_EVERY = 32  # verdicts of this process between two looks at the workers
UNFINISHED = (StopReason.ABORT, StopReason.ERROR)


@dataclass(frozen=True)
class _Request:
    """One verifier to be asked about one completion."""

    group: int
    prompt_id: str
    completion: Completion
    name: str
    submission: Submission


class Scorer:
    """Judges completions with the configured verifiers, or the task's (`defaults`, name to weight).

    A prompt that names its own verifiers is judged by those, with the configured weight where they have one, else 1;
    `tasks.dataset` adds to them what is configured and named by no row.

    `own` are functions by name that are called in this process, so they must return by themselves; where the
    configuration names no verifier, they judge alone, each with weight 1. `folder` is the run's: verifiers that ask
    a judge write there. `named` are the verifiers that the rows name: what they need is opened now, so that what is
    missing is found before anything is sampled.

    Raises:
        ConfigError: no such verifier, or the judge cannot be asked.
    """

    def __init__(
        self,
        reward: RewardConfig,
        defaults: Mapping[str, float],
        own: Mapping[str, Verifier] | None = None,
        folder: Path | None = None,
        named: Collection[str] = (),
    ) -> None:
        self.reward = reward
        self.folder = folder
        self.client: JudgeClient | None = None
        self.judged: dict[str, JudgedVerifier] = {}
        self.saved: dict[str, Any] = {}
        self.step = 0
        self.weights = dict(reward.verifiers or dict.fromkeys(own or {}, 1.0) or defaults)
        self.entries = {name: VerifierEntry(name, function, bounded=True) for name, function in (own or {}).items()}
        self.pool: DeadlinePool | None = None
        self.always = [FORMAT_PART] if reward.format.pattern else []
        if self.always and FORMAT_PART in self.weights:
            raise ConfigError(
                "the format is rewarded twice: leave out reward.format.pattern or reward.verifiers.format"
            )
        for name in [*self.weights, *self.always, *(sorted(named) if reward.verify else ())]:
            if self.asks_judge(name):
                self._judged(name)
            else:
                self._entry(name)
        check_options(reward.options, self.entries)
        for name in own or {}:
            if reward.verify and name not in self.weights and name not in named:
                raise ConfigError(
                    f"the reward {name!r} judges no row: reward.verifiers names {', '.join(self.weights)}; add "
                    f"reward.verifiers.{name}=1.0"
                )
        # Rows may name a verifier of the user's by its registered name, the configuration by its import path.
        registered = {entry.name: self.weights[name] for name, entry in self.entries.items() if name in self.weights}
        self.part_weights = {**registered, **self.weights}

    def score(self, groups: Sequence[Group], step: int | None = None) -> ScoreReport:
        """Sets `reward`, `reward_parts` and the length penalty of every completion, and reports.

        `step` is that of the training; without it, verifiers that learn (rubrics) only judge.

        The reward is made of the parts by `shaped_reward`, and None where a part is missing. Completions that the
        engine did not finish get none. `ScoreReport.check` stops a run in which too many are missing.
        """
        report = ScoreReport(max_missing=self.reward.max_missing)
        asked: list[_Request] = []
        for number, group in enumerate(groups):
            prompt_id = group.prompt.id if group.prompt else group.id
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
                    _Request(number, prompt_id, completion, name, self._submission(group, completion, name))
                    for name in names
                ]
        for request, verdict in zip(asked, self._verdicts(asked, step), strict=True):
            request.completion.reward_parts[request.name] = verdict.score
            if verdict.score is None:
                request.completion.info.setdefault(MISSING, {})[request.name] = verdict.reason
            report.verifiers[request.name].count(verdict)
        for judged in self.judged.values():
            report.judges |= judged.metrics()
        if self.client is not None:
            report.judges |= self.client.metrics()
        for group in groups:
            for completion in group.completions:
                if completion.stop_reason not in UNFINISHED:
                    completion.reward = shaped_reward(completion, self.part_weights, self.reward)
                    penalty = length_penalty(completion, group.prompt.source if group.prompt else "", self.reward)
                    if self.reward.length.coef:
                        completion.penalties[LENGTH_PENALTY] = penalty
                report.missing += completion.reward is None
        if report.missing:
            logger.warning("%d of %d rewards missing: %s", report.missing, report.completions, report.explanation())
        return report

    def verified(self, completion: Completion) -> float | None:
        """The verifiers' weighted sum for a scored completion, before scale, format and length."""
        return verified_sum(completion, self.part_weights, self.reward)

    def state_dict(self) -> dict[str, Any]:
        """What verifiers have learnt and what the judge has cost, as plain values."""
        learnt = {name: judged.state_dict() for name, judged in self.judged.items()}
        spent = self.client.spent.to_dict() if self.client else self.saved.get("spent", {})
        return {"learnt": {**self.saved.get("learnt", {}), **learnt}, "spent": spent}

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        """Goes on after `step` from what `state_dict` gave then."""
        self.saved = state
        self.step = step
        for name, judged in self.judged.items():
            self._load(name, judged)
        if self.client is not None:
            self.client.spent = Spending(**state["spent"])

    def snapshot(self) -> dict[str, Any]:
        """What verifiers have learnt, to be given to `restore` in the same process. Takes next to no time."""
        return {name: judged.snapshot() for name, judged in self.judged.items()}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Forgets what verifiers learnt since. What the judge has cost stays spent."""
        self.judged = {name: self.judged[name] for name in snapshot}
        for name, learnt in snapshot.items():
            self.judged[name].restore(learnt)

    def asks_judge(self, name: str) -> bool:
        """Whether a verifier asks a judge."""
        return name in JUDGED and name not in self.entries

    @property
    def is_judged(self) -> bool:
        """Whether a judge's marks are among the rewards: these are seldom full, so that accuracy says little."""
        return bool(self.judged)

    def close(self) -> None:
        """Ends the worker processes, and closes the judge's cache."""
        if self.pool is not None:
            self.pool.close()
        if self.client is not None:
            self.client.close()

    def _judged(self, name: str) -> JudgedVerifier:
        if self.client is None:
            self.client = JudgeClient(self.reward.judge, self.folder)
            self.client.spent = Spending(**self.saved.get("spent", {}))
        if name not in self.judged:
            self.judged[name] = JUDGED[name](self.reward, self.client)
            self._load(name, self.judged[name])
        return self.judged[name]

    def _load(self, name: str, judged: JudgedVerifier) -> None:
        if name in self.saved.get("learnt", {}):
            judged.load_state_dict(self.saved["learnt"][name], self.step)

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
            columns=prompt.columns if prompt else {},
        )

    def _verdicts(self, asked: Sequence[_Request], step: int | None) -> list[Verdict]:
        """Bounded verifiers, async ones and those that take a batch are called here, others in worker processes
        meanwhile; judges are asked about all then."""
        verdicts: dict[int, Verdict] = {}
        places: dict[str, list[int]] = defaultdict(list)
        together: dict[str, list[int]] = defaultdict(list)
        elsewhere: dict[Hashable, list[int]] = {}
        for place, request in enumerate(asked):
            if self.asks_judge(request.name):
                places[request.name].append(place)
                continue
            entry = self._entry(request.name)
            if judges_together(entry.function):
                together[request.name].append(place)
                continue
            verdict = judge_here(entry, request.submission)
            if verdict is not None:
                verdicts[place] = verdict
                if elsewhere and place % LOOK_EVERY == 0 and self.pool is not None:
                    self.pool.look()
                continue
            key = place if entry.key is None else (request.name, entry.key(request.submission))
            if key not in elsewhere:
                pool = self.pool if elsewhere and self.pool is not None else self._pool_for(asked)
                pool.add((import_path(entry), request.submission))
            elsewhere.setdefault(key, []).append(place)
        for name, own in together.items():
            submissions = [asked[place].submission for place in own]
            found = verdicts_together(self._entry(name).function, submissions, self.reward.timeout)
            verdicts |= zip(own, found, strict=True)
        if elsewhere and self.pool is not None:
            for same, verdict in zip(elsewhere.values(), self.pool.finish(), strict=True):
                verdicts |= dict.fromkeys(same, replace(verdict, seconds=0.0)) | {same[0]: verdict}
        for name, own in places.items():
            questions = [Asked(asked[place].group, asked[place].prompt_id, asked[place].submission) for place in own]
            verdicts |= zip(own, self._judged(name).verdicts(questions, step), strict=True)
        return [verdicts[place] for place in range(len(asked))]

    def _pool_for(self, asked: Sequence[_Request]) -> DeadlinePool:
        """The pool, made anew where a row names a verifier that it has not imported."""
        entries = [self._entry(name) for name in {request.name for request in asked} if not self.asks_judge(name)]
        paths = {import_path(entry) for entry in entries if not (entry.bounded or judges_together(entry.function))}
        paths = paths.union(*(entry.needs for entry in self.entries.values()))
        if self.pool is None or not paths <= set(self.pool.paths):
            known: Sequence[str] = []
            if self.pool is not None:
                known = self.pool.paths
                self.pool.close()  # and nothing else: the judge's cache stays open
            self.pool = DeadlinePool(
                sorted(paths.union(known)),
                workers=self.reward.workers,
                timeout=self.reward.timeout,
                memory_gib=self.reward.memory_gib,
            )
        return self.pool


def own_ground_truth(prompt: Prompt, name: str) -> Any:
    """The ground truth for one verifier: its own where the prompt's is a dict with its verifiers as keys. A verifier
    that the row did not name gets all of it."""
    truth = prompt.ground_truth
    if isinstance(truth, dict) and truth and set(truth) <= set(prompt.verifiers):
        return truth.get(name, truth)
    return truth
