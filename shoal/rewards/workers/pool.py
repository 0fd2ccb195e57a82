"""What a scorer asks of the processes that judge for it, wherever they run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from shoal.config.nodes.data import RewardConfig
from shoal.rewards.verdict import Verdict
from shoal.rewards.workers.deadline import DeadlinePool, Job
from shoal.types import Place


class Pool(Protocol):
    """See `DeadlinePool`, the one of this machine."""

    paths: list[str]

    def add(self, job: Job) -> int: ...

    def take(self, tickets: Sequence[int]) -> list[Verdict]: ...

    def extend(self, paths: Sequence[str]) -> None: ...

    def look(self) -> None: ...

    def places(self) -> list[Place]: ...

    def close(self) -> None: ...


def pool_here(paths: Sequence[str], reward: RewardConfig) -> Pool:
    """`reward.workers` of this machine, which import these paths."""
    return DeadlinePool(paths, workers=reward.workers, timeout=reward.timeout, memory_gib=reward.memory_gib)
