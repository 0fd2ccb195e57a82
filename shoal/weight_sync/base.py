"""The weight sync's contract: version n's weights get into the engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

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

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A context around the optimizer's write: pauses generation where memory is shared, else nothing."""
        yield

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
