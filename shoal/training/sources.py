"""Where scored groups come from: rolled out now, or recorded by an earlier run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from logging import getLogger
from pathlib import Path
from typing import Any

from shoal.config import ShoalConfig
from shoal.errors import BudgetError, ConfigError, TrainingError
from shoal.monitor.monitor import Monitor
from shoal.rewards.report import ScoreReport
from shoal.rollout.environment import Item
from shoal.rollout.sampling import sampling_params
from shoal.tasks.stream import PromptStream
from shoal.training.parts import Parts
from shoal.training.recording import GroupRecording
from shoal.types import Group

logger = getLogger(__name__)


class StoppedWaiting(Exception):
    """A stop was asked for while a source waited for groups: the step did not begin."""


class GroupSource(ABC):
    """Gives the groups of one step, whole and rewarded.

    `passed_over` are groups that were sampled for the last step and are not trained on, as the configuration wants it:
    metrics of sampling count them. None where the source never chooses among its groups.
    """

    passed_over: list[Group] | None = None
    ahead = False
    """Whether rollouts go on while the learner trains and publishes."""

    @abstractmethod
    def next_groups(self, step: int) -> list[Group]:
        """The groups that step `step` (from 1) trains on, in a fixed order.

        Raises:
            StoppedWaiting: a stop was asked for meanwhile.
        """

    def state_dict(self) -> dict[str, Any]:
        """The position in the data, for a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from that position."""

    def save(self, folder: Path) -> None:
        """Writes what a checkpoint keeps beside `state_dict`, which was called before, into its folder."""

    def load(self, folder: Path) -> None:
        """The inverse of `save`, after `load_state_dict`."""

    def published(self, version: int) -> None:
        """Takes note that the engine holds this version."""

    def standing(self) -> str:
        """Who waits for whom, in words that change when anything moves."""
        return ""

    def metrics(self) -> dict[str, float]:
        """What the last step's groups cost to get, by metric name."""
        return {}

    def leave_out(self, groups: list[Group], reason: str) -> bool:
        """Takes note of groups whose loss is not finite; whether the step goes on without them.

        Groups that this run sampled itself are not left out: its weights are broken then.
        """
        return False

    def close(self) -> None:
        """Frees what the source holds."""


class SyncSource(GroupSource):
    """Rolls out with the weights of now. Zero-variance groups are replaced where the algorithm refills."""

    def __init__(self, cfg: ShoalConfig, parts: Parts, monitor: Monitor) -> None:
        self.cfg = cfg
        self.parts = parts
        self.monitor = monitor
        self.stream = PromptStream(parts.task.train, seed=cfg.run.seed, shuffle=cfg.data.shuffle)
        self.last: dict[str, float] = {}

    def next_groups(self, step: int) -> list[Group]:
        before = self.state_dict(), self.parts.scorer.snapshot()
        try:
            return self._groups(step)
        except BudgetError:
            # The run is saved as it was before this step, which is done again when it goes on.
            self.load_state_dict(before[0])
            self.parts.scorer.restore(before[1])
            raise

    def _groups(self, step: int) -> list[Group]:
        wanted = self.cfg.run.prompts_per_step
        refill = self.cfg.algorithm.zero_variance == "refill"
        kept: list[Group] = []
        self.passed_over = [] if refill else None
        sampled = 0
        scored = ScoreReport()
        for attempt in range(1 + (self.cfg.algorithm.refill_rounds if refill else 0)):
            groups = self._roll_out_and_score(wanted - len(kept), step, scored)
            sampled += len(groups)
            kept += [group for group in groups if not (refill and group.zero_variance)]
            if self.passed_over is not None:
                self.passed_over += [group for group in groups if group.zero_variance]
            if len(kept) == wanted:
                break
            logger.debug("step %d, round %d: %d of %d groups have a signal", step, attempt, len(kept), wanted)
        counts = {"groups/sampled": float(sampled), "groups/used": float(len(kept))}
        self.last = {**scored.metrics(), **counts}
        if len(kept) < wanted:
            self.monitor.message(
                f"step {step}: {len(kept)} of {wanted} groups have rewards that differ after "
                f"{sampled} prompts; training on those (algorithm.refill_rounds bounds the search)"
            )
        return kept

    def _roll_out_and_score(self, count: int, step: int, scored: ScoreReport) -> list[Group]:
        """`scored` counts what all rounds of the step scored."""
        with self.monitor.phase("rollout"):
            items = [Item(prompt, epoch) for prompt, epoch in self.stream.next(count)]
            groups = self.parts.rollouts.sample(
                items,
                size=self.cfg.run.group_size,
                sampling=sampling_params(self.cfg),
                step=step,
                progress=self.monitor.progress.sampling(f"step {step}, rollout", count * self.cfg.run.group_size),
            )
        with self.monitor.phase("reward"):
            scored.add(self.parts.scorer.finish(groups, step).check())
        return groups

    def metrics(self) -> dict[str, float]:
        return self.last

    def state_dict(self) -> dict[str, Any]:
        return {"stream": self.stream.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.get("pending"):
            raise ConfigError(
                "source.max_staleness=0: the checkpoint has prompts that were under way, which only rollouts ahead of "
                "the learner finish: set source.max_staleness to 1 or more, as it was"
            )
        self.stream.load_state_dict(state["stream"])


class ReplaySource(GroupSource):
    """The groups that an earlier run recorded, step by step.

    They keep that run's sampler log-probs and rewards. Penalties and reference log-probs are this run's to make.
    """

    def __init__(self, recording: GroupRecording) -> None:
        self.recording = recording

    def next_groups(self, step: int) -> list[Group]:
        groups = self.recording.read(step)
        if groups is None:
            raise TrainingError(
                f"source.path={self.recording.folder}: no groups recorded for step {step}; "
                f"it has {self.recording.last_step()} steps, set run.steps to at most that"
            )
        for completion in (completion for group in groups for completion in group.completions):
            completion.penalties = {}
            for segment in completion.segments:
                segment.ref_logprobs = None
        return groups
