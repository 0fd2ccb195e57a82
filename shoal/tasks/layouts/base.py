"""What a data layout is: which columns a row has, what is asked in it and what is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from json import JSONDecodeError, loads
from typing import Any

from shoal.errors import DataError
from shoal.types import Message, Prompt

Row = dict[str, Any]
ROLES = ("system", "user", "assistant", "tool")


@dataclass
class Example:
    """What one row asks, before the system prompt and the chat template. `verifiers` is empty where the row names
    none; `columns` are those that the layout does not read."""

    messages: list[Message]
    ground_truth: Any
    verifiers: list[str] = field(default_factory=list)
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """A kind of row.

    `read` turns a row into an example; it raises DataError, without the row's place, where it cannot. Of each tuple in
    `columns` a data set must have one; those in `optional` are read where they exist. `verifiers` judge the rows that
    name none. `demonstrate` gives a text that they must find right, for the start-up check. `hub` is the data set (name
    and subset) that is read where no path is given; `make` makes a built-in task's rows, for evaluation or training.
    """

    read: Callable[[Row], Example]
    columns: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...] = ()
    verifiers: dict[str, float] = field(default_factory=dict)
    demonstrate: Callable[[Prompt], str] | None = None
    hub: tuple[str, str | None] | None = None
    make: Callable[[bool], list[Row]] | None = None


def question(text: str) -> list[Message]:
    """A conversation that is one question."""
    return [{"role": "user", "content": text}]


def conversation(value: Any) -> list[Message]:
    """Messages from a column that holds a text or a list of messages; an answer at their end is cut off.

    Every field of a message is kept, for the chat template to read. An assistant's turn that calls tools needs no text.

    Raises:
        DataError: it is neither, or nothing is asked.
    """
    if isinstance(value, str):
        return question(value)
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise DataError(f"the messages must be a text or a list of role and content, not {str(value)[:80]!r}")
    for message in value:
        content = message.get("content")
        calls = message.get("role") == "assistant" and message.get("tool_calls") and content is None
        if message.get("role") not in ROLES or not (isinstance(content, str) or calls):
            raise DataError(f"a message needs a role ({', '.join(ROLES)}) and a text as content: {str(message)[:80]!r}")
    messages = [{"role": message["role"], "content": "", **without_none(message)} for message in value]
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not any(message["role"] == "user" for message in messages):
        raise DataError("the messages ask nothing: none has the role user before the last answer")
    return messages


def split_columns(layout: Layout, row: Row, names: Mapping[str, str]) -> tuple[Row, Row]:
    """What the layout reads of a row, by the layout's own names, and the columns that it does not read.

    `names` gives the data's name of a column where it is not the layout's; it wins over the layout's alternatives.
    """
    read: Row = {}
    used: set[str] = set()
    for alternatives in (*layout.columns, layout.optional):
        wanted = [name for name in alternatives if name in names] or alternatives
        there = {name: row[names.get(name, name)] for name in wanted if names.get(name, name) in row}
        read |= there
        taken = next((name for name in there if there[name] is not None), None)
        if taken is not None:
            used.add(names.get(taken, taken))
    return read, {name: value for name, value in row.items() if name not in used}


def pick(row: Row, names: Sequence[str]) -> Any:
    """The value of the first of these columns that the row has."""
    return next(row[name] for name in names if row.get(name) is not None)


def names_in(value: Any) -> list[str]:
    """Verifiers' names from a column that holds one name, a list of them, or nothing.

    Raises:
        DataError: it is something else.
    """
    names = [value] if isinstance(value, str) else (value or [])
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise DataError(f"verifiers are named by a text or a list of texts, not {str(value)[:80]!r}")
    return list(dict.fromkeys(names))


def parsed(value: Any) -> Any:
    """What a text holds as JSON; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return loads(value)
    except JSONDecodeError:
        return value


def without_none(value: Any) -> Any:
    """Dicts and lists without the empty fields that Parquet gives to every row of a column."""
    if isinstance(value, dict):
        return {name: without_none(entry) for name, entry in value.items() if entry is not None}
    return [without_none(entry) for entry in value] if isinstance(value, list) else value
