"""The sources that a data configuration names: one, or those of `data.mix`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from math import isfinite
from typing import Any

from shoal.config.nodes.data import DataConfig
from shoal.errors import ConfigError

Amount = int | float
PLACE = ("path", "subset", "revision", "eval_path")


@dataclass(frozen=True)
class DataSource:
    """Rows of one layout at one place, and how many of them are used.

    `amount` and `eval_amount`: an integer is a count, a float a share of the source (1.0: all). Above what is there,
    rows are repeated. `verifiers`, where given, judge the source whatever its rows say.
    """

    name: str
    task: str
    path: str | None = None
    subset: str | None = None
    revision: str | None = None
    split: str = "train"
    eval_path: str | None = None
    eval_split: str = "test"
    amount: Amount = 1.0
    eval_amount: Amount = 1.0
    verifiers: list[str] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)
    system_prompt: str | None = None
    instructions: str | None = None


ENTRIES = tuple(entry.name for entry in fields(DataSource) if entry.name != "name")


def data_sources(data: DataConfig) -> list[DataSource]:
    """The sources in the order of the configuration. Without `data.mix` it is one, named after its layout.

    An entry of the mix takes what it does not give from `data`; one with a path of its own takes nothing of the place
    that data.path names.

    Raises:
        ConfigError: an entry cannot be read, or nothing is trained or evaluated on.
    """
    common = DataSource(name=data.task, **{name: getattr(data, name) for name in ENTRIES if hasattr(data, name)})
    if not data.mix:
        return [common]
    sources = [_source(name, entry, common) for name, entry in data.mix.items()]
    for key, what in (("amount", "train"), ("eval_amount", "evaluate")):
        if not any(getattr(source, key) for source in sources):
            raise ConfigError(f"data.mix: every {key} is 0, so there is nothing to {what} on")
    return sources


def _source(name: str, entry: Any, common: DataSource) -> DataSource:
    key = f"data.mix.{name}"
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{key}: {entry!r} is not a source; write {key}.path=FILE and {key}.amount=1.0")
    for word in entry:
        if word not in ENTRIES:
            raise ConfigError(
                f"there is no key '{key}.{word}'; the nearest is {get_close_matches(str(word), ENTRIES, 1, 0)[0]!r} "
                f"(there are: {', '.join(ENTRIES)})"
            )
    given = dict(entry)
    if isinstance(given.get("verifiers"), str):
        given["verifiers"] = [given["verifiers"]]
    for entry_name, value in given.items():
        if not _fits(entry_name, value):
            raise ConfigError(f"{key}.{entry_name}: {value!r} is not {_wanted(entry_name)}")
    elsewhere = replace(common, **dict.fromkeys(PLACE)) if given.get("path") else common  # type: ignore[arg-type]
    return replace(elsewhere, name=name, **given)


def _fits(name: str, value: Any) -> bool:
    if name in ("amount", "eval_amount"):
        return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and value >= 0
    if name == "verifiers":
        return isinstance(value, list) and all(isinstance(verifier, str) for verifier in value)
    if name == "columns":
        return isinstance(value, Mapping) and all(isinstance(text, str) for text in (*value, *value.values()))
    return isinstance(value, str) or (value is None and name not in ("task", "split", "eval_split"))


def _wanted(name: str) -> str:
    if name in ("amount", "eval_amount"):
        return "an amount: 1.0 is all, 0.5 half, 2.0 everything twice, an integer that many rows, 0 none"
    if name == "columns":
        return "names of columns by the layout's, such as {prompt: question}"
    return "a list of verifiers' names" if name == "verifiers" else "a string"
