"""The weight sync's contract: version n's weights get into the engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future

from shoal.errors import EngineError
from shoal.weight_sync.check import SelfCheck


class PublishHandle:
    """A publication: done already where it was given the seconds of its parts, under way where it was given a future
    of them."""

    def __init__(self, version: int, seconds: dict[str, float] | Future[dict[str, float]]) -> None:
        self.version = version
        if isinstance(seconds, Future):
            self.future = seconds
        else:
            self.future = Future()
            self.future.set_result(seconds)

    def wait(self, deadline: float | None = None) -> dict[str, float]:
        """Blocks until the engine holds the version, at most `deadline` seconds; returns the seconds of each part by
        name.

        Raises:
            EngineError: it does not hold it by then, or the publication failed.
            TrainingError: the engine reports another version or other log-probs.
        """
        try:
            return self.future.result(deadline)
        except TimeoutError as error:
            if self.future.done():  # the publication's own error
                raise
            raise EngineError(
                f"weight sync: the engine does not hold version {self.version} after {deadline:g} s; "
                "weight_sync.timeout sets how long is waited"
            ) from error


class WeightSync(ABC):
    """Gets the learner's weights into the engine. Version n is the weights after n trained batches."""

    check: SelfCheck
    held: Callable[[int], None] | None = None
    """Told of a version as soon as the engine says that it holds it, before the self-check."""

    def before_write(self) -> None:
        """The learner will write its weights: pauses generation where their memory is shared, else nothing.

        Raises:
            EngineError: the weights are still being read after `weight_sync.timeout` seconds, or a server fails.
        """

    def after_write(self) -> None:
        """The learner has written its weights, or failed to."""

    def may_overlap(self, version: int) -> bool:
        """Whether the learner may compute, but not write its weights, while another thread publishes this version."""
        return False

    def note_learner(self, version: int) -> None:
        """Takes the learner's log-probs for the self-check of this version, where one is due: for a publication in
        another thread, before which the learner's model is still at rest."""

    @abstractmethod
    def publish(self, version: int, *, now: bool = False) -> PublishHandle:
        """Makes the engine hold this version, checked against the learner's log-probs when due.

        It may return before the engine holds it: then what is raised comes out of the handle's `wait`, and the weights
        may not be written before that has returned.

        Between the versions that `weight_sync.every` divides nothing is done, unless `now` says so: the engine stays
        at an older version, which the handle and its completions name.

        Raises:
            TrainingError: the engine reports another version or other log-probs.
        """

    def metrics(self) -> dict[str, float]:
        """Of the last transfer, where a kind counts any: `bytes` that the learner sent, whether those were all weights
        (`full`), and the share of their elements that had changed (`changed_share`, where they were compared)."""
        return {}

    def close(self) -> None:
        """Frees what the sync holds."""
