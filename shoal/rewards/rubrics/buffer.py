"""The criteria of each prompt over a run: which always count, which are in use, which were given up, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from shoal.rewards.rubrics.rubric import Criterion

HISTORY = 32  # entries kept of each criterion, the newest


@dataclass(frozen=True)
class Scored:
    """How one criterion did over the completions of one group: mean, population deviation, completions with a score."""

    step: int
    mean: float
    std: float
    count: int


@dataclass(frozen=True)
class PromptRubrics:
    """The lists of one prompt. `persistent` ones always count. `history` is by the criterion's key, oldest first;
    `static_added` is the step in which the data's own became active last. Never changed, only replaced."""

    persistent: tuple[Criterion, ...] = ()
    active: tuple[Criterion, ...] = ()
    inactive: tuple[Criterion, ...] = ()
    history: Mapping[str, tuple[Scored, ...]] = field(default_factory=dict)
    static_added: int = 0

    @property
    def used(self) -> tuple[Criterion, ...]:
        """What a completion is judged by."""
        return self.persistent + self.active


class RubricBuffer:
    """The rubrics of a run by prompt id."""

    def __init__(self, *, max_active: int, static_persistent: bool, readd_static_every: int) -> None:
        self.max_active = max_active
        self.static_persistent = static_persistent
        self.readd_static_every = readd_static_every
        self.entries: dict[str, PromptRubrics] = {}

    def look(self, prompt: str, static: Sequence[Criterion]) -> PromptRubrics:
        """The lists of a prompt as they are; of one not seen yet, as they would begin."""
        if prompt in self.entries:
            return self.entries[prompt]
        return (
            PromptRubrics(persistent=tuple(static)) if self.static_persistent else PromptRubrics(active=tuple(static))
        )

    def open(self, prompt: str, static: Sequence[Criterion], step: int) -> PromptRubrics:
        """The lists of a prompt for a training step. The data's own that were given up are active again after
        `readd_static_every` steps."""
        entry = self.look(prompt, static)
        if prompt not in self.entries:
            entry = replace(entry, static_added=step)
        elif step - entry.static_added >= self.readd_static_every:
            back = [criterion for criterion in entry.inactive if criterion.origin == "static"]
            entry = replace(_activated(entry, back), static_added=step)
        self.entries[prompt] = entry
        return entry

    def add(self, prompt: str, new: Iterable[Criterion], taken: Iterable[Criterion] = ()) -> list[Criterion]:
        """Makes new criteria active, and gives those that were. One with the title of a criterion in use, or of one in
        `taken`, is a duplicate; one that was given up comes back with its history."""
        entry = self.entries[prompt]
        titles = {criterion.title.casefold() for criterion in (*entry.used, *taken)}
        added: list[Criterion] = []
        for criterion in new:
            if criterion.title.casefold() not in titles:
                titles.add(criterion.title.casefold())
                added.append(criterion)
        self.entries[prompt] = _activated(entry, added)
        return added

    def record(self, prompt: str, scored: Mapping[str, Scored]) -> list[Criterion]:
        """Keeps how the criteria did, and gives those that became inactive.

        An active criterion whose scores were all equal tells completions apart no more: it becomes inactive. Of the
        others `max_active` stay: those not scored yet, which have had no chance, then those of the largest deviation.
        """
        entry = self.entries[prompt]
        history = dict(entry.history)
        for key, result in scored.items():
            history[key] = (*history.get(key, ()), result)[-HISTORY:]
        useful = [criterion for criterion in entry.active if _deviation(criterion, scored) > 0]
        ranked = sorted(useful, key=lambda criterion: -_deviation(criterion, scored))  # stable: the older one first
        staying = {criterion.key for criterion in ranked[: self.max_active]}
        leaving = [criterion for criterion in entry.active if criterion.key not in staying]
        self.entries[prompt] = replace(
            entry,
            active=tuple(criterion for criterion in entry.active if criterion.key in staying),
            inactive=(*entry.inactive, *leaving),
            history=history,
        )
        return leaving

    def state_dict(self) -> dict[str, Any]:
        """All entries as plain values."""
        return {prompt: _to_dict(entry) for prompt, entry in self.entries.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.entries = {prompt: _from_dict(row) for prompt, row in state.items()}


def _deviation(criterion: Criterion, scored: Mapping[str, Scored]) -> float:
    result = scored.get(criterion.key)
    return float("inf") if result is None else result.std


def _activated(entry: PromptRubrics, criteria: Sequence[Criterion]) -> PromptRubrics:
    keys = {criterion.key for criterion in criteria}
    known = {criterion.key: criterion for criterion in entry.inactive}
    return replace(
        entry,
        active=(*entry.active, *(known.get(criterion.key, criterion) for criterion in criteria)),
        inactive=tuple(criterion for criterion in entry.inactive if criterion.key not in keys),
    )


def _to_dict(entry: PromptRubrics) -> dict[str, Any]:
    lists = {name: [one.to_dict() for one in getattr(entry, name)] for name in ("persistent", "active", "inactive")}
    history = {key: [list(vars(one).values()) for one in results] for key, results in entry.history.items()}
    return {**lists, "history": history, "static_added": entry.static_added}


def _from_dict(row: Mapping[str, Any]) -> PromptRubrics:
    lists = {name: tuple(Criterion(**one) for one in row[name]) for name in ("persistent", "active", "inactive")}
    history = {key: tuple(Scored(*one) for one in results) for key, results in row["history"].items()}
    return PromptRubrics(**lists, history=history, static_added=row["static_added"])
