"""What training, evaluation and the start-up check share."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from shoal.engines.base import Engine
from shoal.environments.single_turn import Decode
from shoal.learners.base import Learner
from shoal.learners.model import Policy
from shoal.rewards.scorer import Scorer
from shoal.runtime import Runtime
from shoal.tasks.base import Task
from shoal.weight_sync.base import WeightSync


@dataclass
class Parts:
    """A model with its task: it samples, is judged and is trained. `decode` gives text without special tokens."""

    runtime: Runtime
    policy: Policy
    task: Task
    decode: Decode
    scorer: Scorer
    learner: Learner
    engine: Engine
    sync: WeightSync

    def close(self) -> None:
        """Ends every part, the last built first."""
        with ExitStack() as last_first:
            for part in (self.learner, self.engine, self.sync, self.scorer):
                last_first.callback(part.close)
