"""The learner's contract: a batch in, optimizer steps and metrics out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from shoal.errors import ConfigError
from shoal.types import Batch, Segment
from shoal.wire.stream import WeightSpec

Writing = Callable[[], AbstractContextManager[None]]


class Learner(ABC):
    """Owns the policy's weights and optimizer. `version` counts trained batches."""

    version: int = 0

    @abstractmethod
    def train(self, batch: Batch, writing: Writing = nullcontext) -> dict[str, float]:
        """Takes num_epochs x num_minibatches optimizer steps, then counts one version more.

        `writing` is entered around each write to the weights. Returns metrics by name.

        Raises:
            TrainingError: a loss or a gradient is not finite; names the completions.
        """

    @abstractmethod
    def logprobs(self, segments: Sequence[Segment], temperature: float = 1.0) -> list[list[float]]:
        """Log-probs of each segment's sampled ids after its context, without gradient, dropout off."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that resuming needs: weights, optimizer, schedule, scaler, version. Tensors on the CPU."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`, exact."""

    @abstractmethod
    def save_pretrained(self, folder: Path) -> None:
        """Writes the model (or the adapter) and the tokenizer as `from_pretrained` reads them."""

    @abstractmethod
    def weight_specs(self) -> list[WeightSpec]:
        """What `named_weights` yields, in its order, without gathering anything."""

    @abstractmethod
    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The whole model's weights by their Hugging Face names, one after another, adapters merged into them.

        Each tensor is whole, and valid until the next is asked for. Tied weights come once.
        """

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
        """Puts each weight into memory that is shared with the engine: `views` by the names of `named_weights`.

        The learner's values are copied there; from then on it reads and writes them in that memory.
        """
        raise ConfigError(f"{type(self).__name__} cannot share its weights with an engine")

    def close(self) -> None:
        """Frees what the learner holds."""
