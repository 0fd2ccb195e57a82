"""What a task gives to a run: prompts to train on, prompts held out, and how they are judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from shoal.types import Prompt


@dataclass
class Task:
    """Tokenised prompts and the verifiers that judge them unless the configuration names others.

    `dropped` counts rows that were left out, by reason. `demonstrate` gives a text that answers the first
    training prompt, or one of the same source, rightly in the eyes of the task's own verifiers, for the start-up check;
    None where others judge.
    """

    train: Sequence[Prompt]
    evaluation: Sequence[Prompt]
    verifiers: dict[str, float]
    dropped: dict[str, int] = field(default_factory=dict)
    demonstrate: Callable[[Prompt], str] | None = None
