"""What training, evaluation and the start-up check share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from shoal.engines.base import Engine
from shoal.learners.base import Learner
from shoal.learners.local import LocalLearner
from shoal.learners.model import Policy
from shoal.models.info import ModelInfo
from shoal.rewards.scorer import Scorer
from shoal.rollout.rollouts import Rollouts
from shoal.runtime import Runtime
from shoal.tasks.base import Task
from shoal.weight_sync.base import WeightSync


@dataclass
class Parts:
    """A model with its task: it samples, is judged and is trained. `decode` gives the text that verifiers see;
    `beneath` is what the parts stand on, such as a cluster, and ends after them."""

    runtime: Runtime
    task: Task
    decode: Callable[[list[int]], str]
    scorer: Scorer
    learner: Learner
    engine: Engine
    sync: WeightSync
    rollouts: Rollouts
    beneath: ExitStack = field(default_factory=ExitStack)

    @property
    def info(self) -> ModelInfo:
        """What is known of the model without its weights."""
        return self.learner.info

    @property
    def policy(self) -> Policy:
        """The policy of learner=local; ranks hold theirs in processes of their own."""
        assert isinstance(self.learner, LocalLearner)
        return self.learner.policy

    def close(self) -> None:
        """Ends every part, the last built first."""
        with self.beneath, ExitStack() as last_first:
            for part in (self.learner, self.engine, self.sync, self.scorer, self.rollouts):
                last_first.callback(part.close)
