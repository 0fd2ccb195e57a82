"""A run: its parts, where it stands, and what it writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

from shoal.algorithms.batch import BatchReport
from shoal.config import ShoalConfig
from shoal.engines.base import Engine
from shoal.learners.base import Learner
from shoal.learners.reference import ReferencePolicy
from shoal.monitor.metrics import describe
from shoal.monitor.monitor import Monitor
from shoal.rewards.scorer import Scorer
from shoal.training.checkpoint import CheckpointStore, replace_folder, rng_state, set_rng_state
from shoal.training.evaluate import Evaluator
from shoal.training.recording import GroupRecording
from shoal.training.sources import GroupSource
from shoal.types import Completion, Group
from shoal.weight_sync.base import WeightSync

logger = getLogger(__name__)


@dataclass
class Run:
    """Everything that the loop touches. `step` counts finished steps; `stopping` tells whether a signal came."""

    cfg: ShoalConfig
    folder: Path
    total_steps: int
    engine: Engine
    learner: Learner
    reference: ReferencePolicy | None
    sync: WeightSync
    source: GroupSource
    scorer: Scorer
    evaluator: Evaluator
    monitor: Monitor
    checkpoints: CheckpointStore
    stopping: Callable[[], bool]
    step: int = 0
    best_accuracy: float = -1.0
    samples: list[Group] | None = None

    @property
    def finished(self) -> bool:
        return self.step >= self.total_steps

    def batch_arguments(self) -> dict[str, Any]:
        """What `make_batch` needs to know of the sampler."""
        return {
            "temperature": self.cfg.sampling.temperature,
            "max_new_tokens": self.cfg.sampling.max_new_tokens,
            "made_up": self.cfg.run.made_up_advantages,
        }

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
        engine = self.engine.statistics()
        row = self.monitor.record(
            step,
            groups,
            {
                **metrics,
                **self.source.metrics(),
                **report.metrics(),
                **{f"engine/{name}": value for name, value in engine.items()},
                **{f"seconds/sync_{name}": value for name, value in sync_seconds.items()},
            },
        )
        if report.made_up_groups:
            self.monitor.message(
                f"step {step}: {report.made_up_groups} groups have equal rewards and were trained on made-up "
                "advantages (smoke test): this shows that training runs, not that it learns"
            )
        elif sentence := describe(row):
            self.monitor.message(f"step {step}: {sentence}")
        if self.cfg.run.record_groups:
            GroupRecording(self.folder).write(step, groups)
        if self.evaluator.due(step):
            self.evaluate()
        if self.cfg.checkpoint.every and step % self.cfg.checkpoint.every == 0:
            self.save()

    def evaluate(self) -> dict[str, float]:
        """Evaluates the weights of now; keeps the model where it is the best so far."""
        with self.monitor.phase("evaluate"):
            metrics, self.samples = self.evaluator.run()
        self.engine.statistics()  # what the evaluation sampled is not the next step's
        self.monitor.evaluation(self.step, metrics)
        if metrics["accuracy"] > self.best_accuracy:
            self.best_accuracy = metrics["accuracy"]
            if self.cfg.checkpoint.keep_best and self.step > 0:
                replace_folder(self.folder / "best", self.learner.save_pretrained)
        return metrics

    def save(self) -> Path:
        """Writes a checkpoint of this moment."""
        with self.monitor.phase("checkpoint"):
            return self.checkpoints.save(
                self.step,
                {
                    "step": self.step,
                    "learner": self.learner.state_dict(),
                    "reference": self.reference.state_dict() if self.reference else {},
                    "source": self.source.state_dict(),
                    "monitor": self.monitor.state_dict(),
                    "best_accuracy": self.best_accuracy,
                    "rng": rng_state(),
                },
            )

    def restore(self) -> bool:
        """Goes on from the newest checkpoint, if there is one."""
        found = self.checkpoints.load()
        if found is None:
            logger.warning("%s has no checkpoint yet: starting at step 0", self.folder)
            self.monitor.resume(0, {})
            return False
        self.step, state = found
        self.learner.load_state_dict(state["learner"])
        if self.reference:
            self.reference.load_state_dict(state["reference"])
        self.source.load_state_dict(state["source"])
        self.monitor.resume(self.step, state["monitor"])
        self.best_accuracy = state["best_accuracy"]
        set_rng_state(state["rng"])
        return True

    def close(self) -> None:
        """Ends every part, the last built first."""
        for part in (self.monitor, self.scorer, self.sync, self.engine, self.learner):
            part.close()


def worst_completions(groups: list[Group], indices: list[int]) -> list[Completion]:
    """The completions behind a batch's completion numbers, in the groups' order."""
    flat = [completion for group in groups for completion in group.completions]
    return [flat[index] for index in indices]
