"""The learner's contract: a batch in, optimizer steps and metrics out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from shoal.errors import ConfigError
from shoal.models.info import ModelInfo
from shoal.runtime import Runtime
from shoal.types import Batch, Place, Segment
from shoal.wire.snapshot import DeltaSize
from shoal.wire.stream import Meeting, WeightSpec


class Watcher(Protocol):
    """Is told of every write to the weights: a weight sync. Two calls, since a context cannot cross processes."""

    def before_write(self) -> None:
        """The weights will be written; returns when they may be."""

    def after_write(self) -> None:
        """The weights are written; called too where writing them failed."""


class Learner(ABC):
    """Owns the policy's weights and optimizer. `version` counts trained batches, `runtime` is what it computes with."""

    version: int = 0
    runtime: Runtime

    @property
    @abstractmethod
    def info(self) -> ModelInfo:
        """What is known of the policy without its weights."""

    @abstractmethod
    def train(self, batch: Batch, watcher: Watcher | None = None) -> dict[str, float]:
        """Takes num_epochs x num_minibatches optimizer steps, then counts one version more.

        `watcher` is told before and after each write to the weights. Returns metrics by name.

        Raises:
            TrainingError: a loss or a gradient is not finite; names the completions.
        """

    @abstractmethod
    def logprobs(self, segments: Sequence[Segment], temperature: float = 1.0) -> list[list[float]]:
        """Log-probs of each segment's sampled ids after its context, without gradient, dropout off."""

    def reference_logprobs(self, segments: Sequence[Segment]) -> list[list[float]]:
        """The same by the reference that the learner holds beside the policy, at temperature 1."""
        raise ConfigError(f"{type(self).__name__} holds no reference")

    @abstractmethod
    def sample(self, contexts: Sequence[list[int]], count: int) -> list[Segment]:
        """Each context continued by `count` tokens that the policy samples at temperature 1, always the same ones."""

    @abstractmethod
    def rounding(self, segments: Sequence[Segment]) -> float:
        """How far rounding alone moves the log-probs of these, on average; see `own_tokens.rounding`."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes everything that resuming needs into a checkpoint's folder, which exists: weights, optimizer, schedule,
        scaler, version. Each process of a learner writes what it holds, in files of its own."""

    def saved(self, folder: Path) -> None:
        """What `save` wrote lies in this folder now, and stays there while the checkpoint is the newest."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """The inverse of `save`, exact.

        Raises:
            ConfigError: the checkpoint is of another model.
            TrainingError: its files are not there, or cannot be read.
        """

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Writes the model (or the adapter) and the tokenizer as `from_pretrained` reads them."""

    @abstractmethod
    def weight_specs(self) -> list[WeightSpec]:
        """What `send_weights` sends, in its order, without gathering anything: the whole model's weights by their
        Hugging Face names, adapters merged into them. Tied weights come once."""

    def join(self, meeting: Meeting) -> None:
        """Becomes rank 0 of a group that takes the weights; returns when all have come. One that it was in is left.

        Raises:
            RuntimeError: not all came in time.
        """
        raise ConfigError(f"{type(self).__name__} sends no weights: weight_sync=broadcast needs a learner that does")

    def revive(self) -> int:
        """Starts processes again that have died; how often that was done since the last call.

        Raises:
            TrainingError: it was done as often as it may be.
        """
        return 0

    def is_in(self, meeting: Meeting) -> bool:
        """Whether it is still in the group that it joined at this meeting, as far as is known here."""
        return True

    def send_weights(self, meeting: Meeting, version: int) -> None:
        """Sends all weights to the group that came to this meeting, one after another, gathered one at a time. With
        `weight_sync.delta` a copy of what is sent is kept as that of `version`.

        Raises:
            RuntimeError: a peer was lost, the deadline passed, or `join` was not called for this meeting.
        """
        raise ConfigError(f"{type(self).__name__} sends no weights: weight_sync=broadcast needs a learner that does")

    def compare_weights(self, version: int) -> DeltaSize:
        """Compares the weights, of `version` now, with the copy of what was sent last, which becomes one of them; makes
        ready what `send_delta` sends. Nothing is sent yet. Where there is no such copy, as in a learner that has just
        been started again, the delta's `before` is no version.
        """
        raise ConfigError(f"{type(self).__name__} sends no weights: weight_sync.delta needs a learner that does")

    def send_delta(self, meeting: Meeting) -> None:
        """Sends what `compare_weights` found to the group that came to this meeting. Raises as `send_weights` does."""
        raise ConfigError(f"{type(self).__name__} sends no weights: weight_sync.delta needs a learner that does")

    def write_weights(self, file: Path, version: int) -> None:
        """Writes all weights of `weight_specs` into a buffer in shared memory (wire/buffers.py)."""
        raise ConfigError(f"{type(self).__name__} writes no weights into shared memory: set weight_sync=broadcast")

    def leave(self) -> None:
        """Leaves the group that it joined, if any."""

    def trained_weights(self) -> Mapping[str, Tensor]:
        """The trained weights by the names of the policy's model, in float32, for a reference that follows them."""
        raise ConfigError(f"{type(self).__name__} gives no weights for reference.polyak_every to follow")

    def save_merged(self, folder: Path) -> None:
        """Writes the whole model, adapters merged, and the tokenizer as `from_pretrained` reads them."""
        raise ConfigError(f"{type(self).__name__} writes no merged model")

    def save_adapter(self, folder: Path) -> None:
        """Writes the adapter alone, as PEFT reads it."""
        raise ConfigError(f"{type(self).__name__} writes no adapter")

    def move_weights(self, views: Mapping[str, Tensor]) -> None:
        """Puts each weight into memory that is shared with the engine: `views` by the names of `weight_specs`.

        The learner's values are copied there; from then on it reads and writes them in that memory.
        """
        raise ConfigError(f"{type(self).__name__} cannot share its weights with an engine")

    def places(self) -> list[Place]:
        """Its parts, for people: see `Place`."""
        return [("", "learner", f"version {self.version}")]

    def close(self) -> None:
        """Frees what the learner holds."""
