"""The verifier's contract and the registry."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shoal.types import StopReason


@dataclass
class Submission:
    """What a verifier sees of one completion. `text` has every token but padding and those that end a completion, so
    that tags which are special tokens are in it; `columns` are the columns of
    the row that the layout does not read."""

    text: str
    ground_truth: Any = None
    messages: list[dict[str, Any]] = field(default_factory=list)
    stop_reason: StopReason = StopReason.STOP
    num_tokens: int = 0
    info: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, Any] = field(default_factory=dict)


Verifier = Callable[..., Any]
"""Takes a Submission, and `reward.options` of its name as keyword arguments. Gives a finite score, by convention
between 0 and 1, 1 for exactly right. Raising makes the reward missing. It may be async; one that is `batched` takes a
list of all submissions of a step and gives a list of their scores."""


def batched(function: Verifier) -> Verifier:
    """Decorator of a verifier that takes the list of all its submissions of a step and gives as many scores, None for
    one that is missing. It runs in this process, so it must return by itself; it may be async."""
    function.batched = True  # type: ignore[attr-defined]
    return function


def is_batched(function: Verifier) -> bool:
    """Whether a verifier takes all submissions of a step at once."""
    return bool(getattr(function, "batched", False))


@dataclass(frozen=True)
class VerifierEntry:
    """A registered verifier. `bounded` ones (a few string operations) run in this process; all others run in
    a killable worker process under `reward.timeout`. `needs` are the optional packages that it imports when it is
    called: import name, and the extra of Shoal that installs it. `quick` is asked first, in this process: it returns by
    itself, gives the score that `function` would give, or None where the worker process must be asked. `key` gives all
    that the score depends on: of submissions that agree in it, a worker process is asked about one. `check` raises
    ValueError for a ground truth of a wrong form; it is called when the data loads."""

    name: str
    function: Verifier
    bounded: bool
    needs: Mapping[str, str] = field(default_factory=dict)
    quick: Callable[..., float | None] | None = None
    key: Callable[[Submission], Hashable] | None = None
    check: Callable[[Any], None] | None = None


REGISTRY: dict[str, VerifierEntry] = {}


def verifier(
    name: str,
    *,
    bounded: bool = False,
    needs: Mapping[str, str] | None = None,
    quick: Callable[..., float | None] | None = None,
    key: Callable[[Submission], Hashable] | None = None,
    check: Callable[[Any], None] | None = None,
) -> Callable[[Verifier], Verifier]:
    """Decorator that registers a verifier under a name. Raises ValueError where the name is taken."""

    def register(function: Verifier) -> Verifier:
        if name in REGISTRY:
            raise ValueError(f"two verifiers are named {name!r}: {REGISTRY[name].function} and {function}")
        REGISTRY[name] = VerifierEntry(name, function, bounded, needs or {}, quick, key, check)
        return function

    return register
