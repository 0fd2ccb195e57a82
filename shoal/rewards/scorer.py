"""Scoring completions: every verifier on every completion, and what came of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from logging import getLogger
from pathlib import Path
from threading import RLock
from types import TracebackType
from typing import Any

from shoal.config.nodes.data import RewardConfig
from shoal.errors import BudgetError, ConfigError
from shoal.rewards.base import Submission, Verifier, VerifierEntry
from shoal.rewards.judged import JUDGED, Asked, JudgedVerifier
from shoal.rewards.judging.client import JudgeClient
from shoal.rewards.judging.spending import Spending
from shoal.rewards.lookup import check_options, find_verifier, import_path
from shoal.rewards.report import ScoreReport
from shoal.rewards.shaping import LENGTH_PENALTY, length_penalty, shaped_reward, verified_sum
from shoal.rewards.together import judges_together, verdicts_together
from shoal.rewards.verdict import Verdict, judge_here
from shoal.rewards.verifiers.code import check_code
from shoal.rewards.workers.pool import Pool, pool_here
from shoal.types import FORMAT_PART, Completion, Group, Place, Prompt, StopReason

logger = getLogger(__name__)

MISSING = "missing"
"""Where a completion's `info` says why parts of its reward are missing: reasons by verifier."""
JUDGED_GROUPS = 32  # at most, whose judges are asked at one time
UNFINISHED = (StopReason.ABORT, StopReason.ERROR)


@dataclass(frozen=True)
class _Request:
    """One verifier to be asked about one completion."""

    prompt_id: str
    completion: Completion
    name: str
    submission: Submission


@dataclass
class _Begun:
    """A group that is being judged: verdicts by the place of their request, keys of those that workers give, and the
    threads that ask judges."""

    group: Group
    asked: list[_Request]
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    elsewhere: dict[int, Hashable] = field(default_factory=dict)
    ahead: list[Future[None]] = field(default_factory=list)


class Scorer:
    """Judges completions with the configured verifiers, or the task's (`defaults`, name to weight).

    A prompt that names its own verifiers is judged by those, with the configured weight where they have one, else 1;
    `tasks.dataset` adds to them what is configured and named by no row.

    `own` are functions by name that are called in this process, so they must return by themselves; where the
    configuration names no verifier, they judge alone, each with weight 1. `folder` is the run's: verifiers that ask
    a judge write there. `named` are the verifiers that the rows name: what they need is opened now, so that what is
    missing is found before anything is sampled. `open_pool` makes the workers that judge with these import paths.

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
        open_pool: Callable[[Sequence[str], RewardConfig], Pool] = pool_here,
    ) -> None:
        self.reward = reward
        self.folder = folder
        self.client: JudgeClient | None = None
        self.judged: dict[str, JudgedVerifier] = {}
        self.saved: dict[str, Any] = {}
        self.step = 0
        self.weights = dict(reward.verifiers or dict.fromkeys(own or {}, 1.0) or defaults)
        self.entries = {name: VerifierEntry(name, function, bounded=True) for name, function in (own or {}).items()}
        self.pool: Pool | None = None
        self.open_pool = open_pool
        self.begun: dict[int, _Begun] = {}
        self.tickets: dict[Hashable, int] = {}  # of verdicts that workers are asked for
        self.taken: dict[Hashable, Verdict] = {}  # those that they have given, while groups are under way
        self.lock = RLock()  # an evaluation may be judged while rollouts go on
        self.threads = ThreadPoolExecutor(JUDGED_GROUPS, "judged group")  # starts none before it is used
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
        """`begin` and `finish` of these groups at once."""
        return self.finish(groups, step)

    def begin(self, group: Group, step: int | None = None) -> None:
        """Starts judging a group and returns at once: verifiers of this process are done, those in worker processes and
        judges are asked. `look` keeps the workers busy, `finish` gives the rewards.

        `step` is that of the training; without it, verifiers that learn (rubrics) only judge.

        Raises:
            TrainingError: a reward worker does not start.
        """
        with self.lock:
            begun = self.begun[id(group)] = _Begun(group, self._requests(group))
            judged: dict[str, list[Asked]] = defaultdict(list)
            entries = {
                name: self._entry(name)
                for name in {request.name for request in begun.asked}
                if not self.asks_judge(name)
            }
            later = {name for name, entry in entries.items() if judges_together(entry.function)}
            for place, request in enumerate(begun.asked):
                entry = entries.get(request.name)
                if entry is None:
                    judged[request.name].append(Asked(0, request.prompt_id, request.submission))
                    continue
                if request.name in later:
                    continue  # by `finish`, which has all completions of the step
                verdict = judge_here(entry, request.submission)
                if verdict is not None:
                    begun.verdicts[place] = verdict
                    continue
                key = (id(group), place) if entry.key is None else (request.name, entry.key(request.submission))
                begun.elsewhere[place] = key
                if key not in self.tickets and key not in self.taken:
                    self.tickets[key] = self._pool_for(entry).add((import_path(entry), request.submission))
            self.look()
            for name, asked in judged.items():
                begun.ahead.append(self.threads.submit(self._judged(name).ahead, asked, step))

    def look(self) -> None:
        """Takes verdicts from the workers and gives them more to do.

        Raises:
            TrainingError: a reward worker does not start.
        """
        with self.lock:
            if self.tickets and self.pool is not None:
                self.pool.look()

    def finish(self, groups: Sequence[Group], step: int | None = None) -> ScoreReport:
        """Sets `reward`, `reward_parts` and the length penalty of every completion, and reports. Groups that `begin`
        has not seen are judged now.

        The reward is made of the parts by `shaped_reward`, and None where a part is missing. Completions that the
        engine did not finish get none. `ScoreReport.check` stops a run in which too many are missing.

        Raises:
            BudgetError: the judge's budget is spent.
            TrainingError: a reward worker does not start.
        """
        with self.lock:
            for group in groups:
                if id(group) not in self.begun:
                    self.begin(group, step)
            begun = [self.begun.pop(id(group)) for group in groups]
            try:
                self._take_verdicts(begun, step)
            except BudgetError:
                self.forget()
                raise
            report = ScoreReport(max_missing=self.reward.max_missing)
            for one in begun:
                self._reward(one, report)
            for judged in self.judged.values():
                report.judges |= judged.metrics()
            if self.client is not None:
                report.judges |= self.client.metrics()
            if not self.begun:
                self.taken.clear()
            if report.missing:
                logger.warning("%d of %d rewards missing: %s", report.missing, report.completions, report.explanation())
            return report

    def forget(self) -> None:
        """Gives up groups that were begun: they are never finished."""
        with self.lock:
            for one in self.begun.values():
                for ahead in one.ahead:
                    ahead.cancel()
            self.begun.clear()
            if self.tickets and self.pool is not None:
                self.pool.close()
            self.tickets.clear()
            self.taken.clear()

    def _requests(self, group: Group) -> list[_Request]:
        """Every verifier of every completion that the engine finished; earlier rewards are taken back."""
        prompt_id = group.prompt.id if group.prompt else group.id
        verifiers = (group.prompt.verifiers if group.prompt else []) or list(self.weights)
        names = [*(verifiers if self.reward.verify else []), *self.always]
        asked = []
        for completion in group.completions:
            completion.reward_parts = {}
            completion.reward = None
            completion.info.pop(MISSING, None)
            if completion.stop_reason not in UNFINISHED:
                asked += [
                    _Request(prompt_id, completion, name, self._submission(group, completion, name)) for name in names
                ]
        return asked

    def _take_verdicts(self, begun: Sequence[_Begun], step: int | None) -> None:
        """Waits for workers and judges. Judges see all of these groups at once, whose replies are there already."""
        for one in begun:
            for place, key in one.elsewhere.items():
                if key in self.tickets and self.pool is not None:
                    [self.taken[key]] = self.pool.take([self.tickets.pop(key)])
                one.verdicts[place] = self.taken[key]
                self.taken[key] = replace(self.taken[key], seconds=0.0)
            for ahead in one.ahead:
                error = ahead.exception()
                if error is not None and not isinstance(error, BudgetError):
                    raise error
        together: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for number, one in enumerate(begun):
            for place, request in enumerate(one.asked):
                if place not in one.verdicts:
                    together[request.name].append((number, place))
        for name, places in together.items():
            requests = [begun[number].asked[place] for number, place in places]
            if self.asks_judge(name):
                asked = [
                    Asked(number, request.prompt_id, request.submission)
                    for (number, _), request in zip(places, requests, strict=True)
                ]
                verdicts = self._judged(name).verdicts(asked, step)
            else:
                submissions = [request.submission for request in requests]
                verdicts = verdicts_together(self._entry(name).function, submissions, self.reward.timeout)
            for (number, place), verdict in zip(places, verdicts, strict=True):
                begun[number].verdicts[place] = verdict

    def _reward(self, begun: _Begun, report: ScoreReport) -> None:
        """Verdicts to rewards and penalties of one group."""
        for place, request in enumerate(begun.asked):
            verdict = begun.verdicts[place]
            request.completion.reward_parts[request.name] = verdict.score
            if verdict.score is None:
                request.completion.info.setdefault(MISSING, {})[request.name] = verdict.reason
            report.verifiers[request.name].count(verdict)
        source = begun.group.prompt.source if begun.group.prompt else ""
        for completion in begun.group.completions:
            report.completions += 1
            if completion.stop_reason in UNFINISHED:
                report.unfinished += 1
            else:
                completion.reward = shaped_reward(completion, self.part_weights, self.reward)
                penalty = length_penalty(completion, source, self.reward)
                if self.reward.length.coef:
                    completion.penalties[LENGTH_PENALTY] = penalty
            report.missing += completion.reward is None

    def verified(self, completion: Completion) -> float | None:
        """The verifiers' weighted sum for a scored completion, before scale, format and length."""
        return verified_sum(completion, self.part_weights, self.reward)

    def state_dict(self) -> dict[str, Any]:
        """What verifiers have learnt and what the judge has cost, as plain values."""
        with self.lock:
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

    def places(self) -> list[Place]:
        """The worker processes, for people: see `Place`."""
        pool = self.pool
        return pool.places() if pool is not None else []

    def close(self) -> None:
        """Ends the worker processes, and closes the judge's cache."""
        self.forget()
        if self.pool is not None:
            self.pool.close()
        if self.client is not None:
            self.client.close()  # ends the questions that threads wait for
        self.threads.shutdown(cancel_futures=True)

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

    def _pool_for(self, entry: VerifierEntry) -> Pool:
        """The pool, whose workers import this verifier and all others that are known."""
        if self.pool is None:
            known = [
                import_path(one) for one in self.entries.values() if not (one.bounded or judges_together(one.function))
            ]
            needed = {*known, *(need for one in self.entries.values() for need in one.needs)}
            self.pool = self.open_pool(sorted(needed), self.reward)
        elif import_path(entry) not in self.pool.paths:
            self.pool.extend([import_path(entry), *entry.needs])
        return self.pool


def own_ground_truth(prompt: Prompt, name: str) -> Any:
    """The ground truth for one verifier: its own where the prompt's is a dict with its verifiers as keys. A verifier
    that the row did not name gets all of it."""
    truth = prompt.ground_truth
    if isinstance(truth, dict) and truth and set(truth) <= set(prompt.verifiers):
        return truth.get(name, truth)
    return truth
