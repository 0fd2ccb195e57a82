"""What a data layout is: a function that reads rows and says what is asked and what is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from shoal.config.data import DataConfig
from shoal.types import Prompt


@dataclass
class Example:
    """One row, before it is rendered and tokenised. `verifiers` is empty where the run's own are to judge it."""

    id: str
    question: str
    ground_truth: Any
    source: str
    verifiers: list[str] = field(default_factory=list)


class ReadExamples(Protocol):
    """Reads the training or the evaluation rows, in a fixed order. Raises DataError where they cannot be used."""

    def __call__(self, data: DataConfig, *, evaluation: bool) -> list[Example]: ...


@dataclass(frozen=True)
class Layout:
    """A kind of data. `verifiers` judge it unless the configuration names others; `demonstrate` gives a text that
    they must find right, for the start-up check."""

    examples: ReadExamples
    verifiers: dict[str, float]
    demonstrate: Callable[[Prompt], str]
