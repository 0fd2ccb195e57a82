"""The weight sync's contract: version n's weights get into the engine."""

from __future__ import annotations

from abc import ABC, abstractmethod

from shoal.engines.vllm.control import VllmControl
from shoal.weight_sync.check import SelfCheck


class PublishHandle:
    """A publication under way; this one is already done. Asynchronous kinds override `wait`."""

    def __init__(self, version: int, seconds: dict[str, float]) -> None:
        self.version = version
        self.seconds = seconds

    def wait(self) -> dict[str, float]:
        """Blocks until the engine holds the version; returns the seconds of each part by name."""
        return self.seconds


class WeightSync(ABC):
    """Gets the learner's weights into the engine. Version n is the weights after n trained batches."""

    check: SelfCheck

    def before_write(self) -> None:
        """The learner will write its weights: pauses generation where their memory is shared, else nothing.

        Raises:
            EngineError: the weights are still being read after `weight_sync.timeout` seconds, or a server fails.
        """

    def after_write(self) -> None:
        """The learner has written its weights, or failed to."""

    @abstractmethod
    def publish(self, version: int, *, now: bool = False) -> PublishHandle:
        """Makes the engine hold this version, checked against the learner's log-probs when due.

        Between the versions that `weight_sync.every` divides nothing is done, unless `now` says so: the engine stays
        at an older version, which the handle and its completions name.

        Raises:
            TrainingError: the engine reports another version or other log-probs.
        """

    def restore(self, control: VllmControl) -> None:
        """Gives the weights of now to a server that was started again because it had died."""

    def close(self) -> None:
        """Frees what the sync holds."""
