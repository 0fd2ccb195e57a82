"""A run: its parts, where it stands, and what it writes."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import ExitStack
from dataclasses import dataclass, field
from logging import getLogger
from math import inf, isfinite
from pathlib import Path
from threading import Thread
from time import monotonic
from typing import Any, TypeVar

from shoal.algorithms.batch import BatchReport, make_batch
from shoal.config import ShoalConfig
from shoal.errors import EngineError, TrainingError
from shoal.files import replace_folder, write_atomically
from shoal.learners.saved import STATE, unusable
from shoal.learners.step import NonFiniteError
from shoal.monitor.monitor import Monitor
from shoal.references.base import Reference, penalise_with_kl
from shoal.run_folder import step_named
from shoal.training.checkpoint import CheckpointStore, rng_state, set_rng_state
from shoal.training.evaluate import Evaluator
from shoal.training.parts import Parts
from shoal.training.recording import GroupRecording
from shoal.training.sources import GroupSource
from shoal.types import Batch, Group

T = TypeVar("T")
logger = getLogger(__name__)

PARTS = 10  # of a publication, each with a deadline of its own: those of an update, and servers that are started again


@dataclass
class Run:
    """Everything that the loop touches. `step` counts finished steps; `stopping` tells whether a signal came;
    `evaluated_step` is the step of the newest evaluation, so that a resumed run does not repeat it; `best_score` is
    what the best one gave in `best_by`."""

    cfg: ShoalConfig
    folder: Path
    total_steps: int
    parts: Parts
    reference: Reference | None
    source: GroupSource
    evaluator: Evaluator
    monitor: Monitor
    checkpoints: CheckpointStore
    stopping: Callable[[], bool]
    step: int = 0
    best_score: float = -inf
    evaluated_step: int = -1
    samples: list[Group] | None = None
    learner_logprobs: list[list[list[float]]] | None = None
    under_way: Future[dict[str, float]] | None = None
    settled: dict[str, float] = field(default_factory=dict)  # seconds of the publication that was under way
    waited_to_publish: float = 0.0

    @property
    def finished(self) -> bool:
        return self.step >= self.total_steps

    @property
    def best_by(self) -> str:
        """The metric of an evaluation that best/ goes by: a judge's marks are seldom full, so that their mean says more
        than the share of full ones."""
        return "reward" if self.parts.scorer.is_judged else "accuracy"

    def batch_arguments(self) -> dict[str, Any]:
        """What `make_batch` needs to know of the sampler."""
        return {
            "temperature": self.cfg.sampling.temperature,
            "max_new_tokens": self.cfg.sampling.max_new_tokens,
            "max_positions": min(self.parts.info.max_positions, self.parts.engine.max_length),
            "made_up": self.cfg.run.made_up_advantages,
        }

    def publish(self, *, now: bool = False) -> dict[str, float]:
        """Has the engine hold the learner's weights where they are due, and tells the source. Seconds of each part.

        Where rollouts run ahead it may return while the weights are on their way; then the seconds are those of the
        publication before, and the learner waits (`settle`) before it writes its weights.
        """
        self.settle()
        version = self.parts.learner.version
        if self.source.ahead and not now and self.parts.sync.may_overlap(version):
            self.parts.sync.note_learner(version)
            self.parts.sync.held = self.source.published
            self.under_way = _aside("publisher", lambda: self._publish(version))
            seconds, self.settled = self.settled, {}
            return seconds
        return self._publish(version, now=now)

    def _publish(self, version: int, *, now: bool = False) -> dict[str, float]:
        handle = self.parts.sync.publish(version, now=now)
        seconds = handle.wait(self.cfg.weight_sync.timeout)
        self.source.published(handle.version)
        return seconds

    def settle(self) -> None:
        """Waits for the publication that is under way, if there is one; what it raises is raised here.

        Raises:
            EngineError: it has not ended after PARTS x `weight_sync.timeout` seconds.
        """
        if self.under_way is None:
            return
        started, found = monotonic(), self.under_way
        self.under_way = None
        deadline = PARTS * self.cfg.weight_sync.timeout
        if not wait_for([found], deadline).done:
            raise EngineError(
                f"the publication of version {self.parts.learner.version} has not ended after {deadline:g} s "
                f"({PARTS} x weight_sync.timeout); {self.standing()}"
            )
        self.waited_to_publish += monotonic() - started
        self.settled = found.result()

    def before_write(self) -> None:
        """The learner writes its weights when the engine has those of before."""
        self.settle()
        self.parts.sync.before_write()

    def after_write(self) -> None:
        """The learner has written them."""
        self.parts.sync.after_write()

    def standing(self) -> str:
        """What the run does now and who waits for whom, in words that change when anything moves."""
        doing = self.monitor.progress.current_phase or "between two phases"
        engine = self.parts.engine
        parts = [
            f"step {self.step + 1}: {doing}",
            f"engine: version {engine.version}, {engine.in_flight} requests in flight",
            self.source.standing(),
        ]
        return "; ".join(part for part in parts if part)

    def score_reference(self, groups: list[Group]) -> None:
        """Reference log-probs, and the KL's part of the reward where it goes there."""
        assert self.reference is not None
        self.reference.score(groups)
        if self.cfg.algorithm.kl_in == "reward":
            penalise_with_kl(groups, self.parts.learner, self.cfg.algorithm.kl_coef)

    def refuse_broken(self, step: int, groups: Sequence[Group]) -> None:
        """Stops a run whose weights produce NaN or infinity, before it trains on meaningless rewards.

        Raises:
            TrainingError: a log-prob of the sampler is not finite.
        """
        completions = [completion for group in groups for completion in group.completions]
        broken = [
            position
            for position, completion in enumerate(completions)
            if not all(isfinite(sum(segment.logprobs)) for segment in completion.segments)
        ]
        if broken:
            path = self.write_failed(step, groups, broken)
            saved = any(saved <= step for saved in self.checkpoints.steps())
            then = "resume from a checkpoint before this step" if saved else "start again"
            raise TrainingError(
                f"step {step}: the sampler's log-probs of {len(broken)} of {len(completions)} completions are not "
                f"finite (written to {path}); the weights have diverged: lower optimizer.lr, and {then}"
            )

    def train(
        self, step: int, groups: list[Group], batch: Batch, report: BatchReport
    ) -> tuple[dict[str, float], BatchReport]:
        """One batch through the learner: its metrics, and the report of what was trained on.

        Where the loss is not finite because of groups that the source can do without, those are taken out of `groups`
        and the rest is trained on. Otherwise the completions are written out.

        Raises:
            TrainingError: a loss or a gradient is not finite.
        """
        while True:
            self.learner_logprobs = self.score_tokens(groups) if self.monitor.writes_samples(step) else None
            try:
                metrics = self.parts.learner.train(batch, self)
                break
            except NonFiniteError as error:
                positions = [report.positions[number] for number in error.completions]
                guilty = groups_at(groups, positions)
                if guilty and self.source.leave_out(guilty, f"step {step}: {error}"):
                    groups[:] = [group for group in groups if not any(group is one for one in guilty)]
                    batch, report = make_batch(groups, self.cfg.algorithm, **self.batch_arguments())
                    continue
                path = self.write_failed(step, groups, positions or report.positions)
                raise TrainingError(f"step {step}: {error} (written to {path})") from error
        if self.reference is not None:
            self.reference.follow(self.parts.learner.version)
        return metrics, report

    def score_tokens(self, groups: Sequence[Group]) -> list[list[list[float]]] | None:
        """The learner's log-probs of every sampled token, for the samples: per completion and segment. None unless
        monitor.tokens asks for them: they cost a forward pass."""
        if not self.cfg.monitor.tokens:
            return None
        completions = [completion for group in groups for completion in group.completions]
        segments = [segment for completion in completions for segment in completion.segments]
        found = iter(self.parts.learner.logprobs(segments, self.cfg.sampling.temperature))
        return [[next(found) for _ in completion.segments] for completion in completions]

    def record(
        self,
        step: int,
        groups: list[Group],
        report: BatchReport,
        metrics: Mapping[str, float],
        sync_seconds: Mapping[str, float],
    ) -> None:
        """Ends a step: metrics, samples, recorded groups, and an evaluation or a checkpoint where one is due."""
        self.step = step
        engine = self.parts.engine.statistics()
        self.monitor.record(
            step,
            groups,
            {
                **metrics,
                **self.source.metrics(),
                **report.metrics(),
                **({"wait/learner_publish": self.waited_to_publish} if self.source.ahead else {}),
                **{f"engine/{name}": value for name, value in engine.items()},
                **{f"seconds/sync_{name}": value for name, value in sync_seconds.items()},
                **{f"sync/{name}": value for name, value in self.parts.sync.metrics().items()},
            },
            report.left_out,
            self.learner_logprobs,
            self.source.passed_over,
        )
        self.waited_to_publish = 0.0
        if report.made_up_groups:
            self.monitor.message(
                f"step {step}: {_groups_of_equal_rewards(report.made_up_groups)} trained on made-up advantages "
                "(smoke test): this shows that training runs, not that it learns"
            )
        if self.cfg.run.record_groups:
            GroupRecording(self.folder).write(step, groups)
        if self.evaluator.due(step):
            self.evaluate()
        if self.cfg.checkpoint.every and step % self.cfg.checkpoint.every == 0:
            self.save()

    def evaluate(self) -> dict[str, float]:
        """Evaluates the weights of now; keeps the model where it is the best so far."""
        self.settle()
        if self.parts.engine.version != self.parts.learner.version:  # weight_sync.every
            self.publish(now=True)
        with self.monitor.phase("evaluate"):
            metrics, self.samples = self.evaluator.run()
        self.refuse_broken(self.step, self.samples)
        self.parts.engine.statistics()  # what the evaluation sampled is not the next step's
        self.monitor.evaluation(self.step, metrics, self.samples)
        self.evaluated_step = self.step
        score = metrics.get(self.best_by, -inf)  # no mean where every reward is missing
        if score > self.best_score:
            self.best_score = score
            if self.cfg.checkpoint.keep_best and self.step > 0:
                replace_folder(self.folder / "best", self.parts.learner.export)
        return metrics

    def save(self) -> Path:
        """Writes a checkpoint of this moment."""
        with self.monitor.phase("checkpoint"):
            folder = self.checkpoints.save(self.step, self.state_dict(), self.write)
            self.parts.learner.saved(folder)
            return folder

    def write(self, folder: Path) -> None:
        """Writes what is not in `state_dict` into a checkpoint's folder."""
        self.parts.learner.save(folder)
        self.source.save(folder)

    def state_dict(self) -> dict[str, Any]:
        """Where the run stands: nothing that the configuration says, so that a resumed run goes by its own. What the
        learner holds is not in it: the learner writes that itself."""
        return {
            "step": self.step,
            "reference": self.reference.state_dict() if self.reference else {},
            "source": self.source.state_dict(),
            "scorer": self.parts.scorer.state_dict(),
            "monitor": self.monitor.state_dict(),
            "best_score": self.best_score,
            "evaluated_step": self.evaluated_step,
            "rng": rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any], checkpoint: Path) -> None:
        """Goes on from there; `checkpoint` is the folder with the learner's own files.

        Raises:
            ConfigError, DataError: the model, the reference or the data are not those of the state.
        """
        step = state["step"]
        self.parts.learner.load(checkpoint)
        if self.reference:
            self.reference.load_state_dict(state["reference"])
        self.source.load_state_dict(state["source"])
        self.source.load(checkpoint)
        self.parts.scorer.load_state_dict(state["scorer"], step)
        self.monitor.load_state_dict(state["monitor"])
        self.best_score = state["best_score"]
        self.evaluated_step = state["evaluated_step"]
        set_rng_state(state["rng"])
        self.step = step

    def save_if_new(self) -> None:
        """Writes a checkpoint unless there is one of this step."""
        if self.step not in self.checkpoints.steps():
            self.save()

    def restore(self) -> None:
        """Goes on from the checkpoint that `resume` names, else from the newest, if there is one.

        Later checkpoints go, as the rows written after it do: they belong to steps that are done again.
        """
        found = self.checkpoints.load(step_named(self.cfg.resume or ""))
        if found is None:
            self.monitor.message(f"{self.folder} has no checkpoint yet: starting at step 0")
            return
        step, state = found
        try:
            self.load_state_dict(state, self.checkpoints.at(step))
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            # Another program's file, or that of a model of another shape.
            file = self.checkpoints.at(step) / STATE
            why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise unusable(file, f"is no checkpoint of this run ({why})") from error
        self.checkpoints.drop_after(self.step)
        self.monitor.message(f"going on after step {self.step} of {self.total_steps}")

    def write_failed(self, step: int, groups: Sequence[Group], positions: Sequence[int]) -> Path:
        """Writes the completions at these positions (over all groups, in order) as failed_step_N.jsonl."""
        flat = [(group, completion) for group in groups for completion in group.completions]
        made = [
            {"group": group.id, "prompt": group.prompt and group.prompt.messages, **completion.to_dict()}
            for group, completion in (flat[position] for position in positions)
        ]
        path = self.folder / f"failed_step_{step}.jsonl"
        write_atomically(path, "".join(json.dumps(without_nan(row)) + "\n" for row in made))
        return path

    def close(self, status: str) -> None:
        """Ends every part, whatever closing another raises. `status` is `finished`, `stopped` or `failed`."""
        with ExitStack() as last_first:
            last_first.callback(gc.unfreeze)  # see `build_run`
            last_first.callback(self.parts.close)
            if self.reference:
                last_first.callback(self.reference.close)
            if self.under_way is not None:  # it ends, or fails, first
                last_first.callback(wait_for, [self.under_way], self.cfg.weight_sync.timeout)
            last_first.callback(self.source.close)
            last_first.callback(self.monitor.close, status)


def groups_at(groups: Sequence[Group], positions: Sequence[int]) -> list[Group]:
    """The groups that have a completion at one of these positions (over all groups, in order)."""
    owners = [group for group in groups for _ in group.completions]
    found = {id(owners[position]): owners[position] for position in positions}
    return list(found.values())


def without_nan(value: Any) -> Any:
    """Nested dicts and lists with null in place of NaN and infinities, which JSON lacks."""
    if isinstance(value, dict):
        return {key: without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _aside(name: str, work: Callable[[], T]) -> Future[T]:
    """Works in a thread of this name, which does not keep the process alive."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            future.set_exception(error)

    Thread(target=run, name=name, daemon=True).start()
    return future


def _groups_of_equal_rewards(count: int) -> str:
    return "1 group has equal rewards and was" if count == 1 else f"{count} groups have equal rewards and were"
