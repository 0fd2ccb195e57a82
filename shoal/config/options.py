"""How a configuration field is declared: a default, a one-line doc, and the values it may take."""

from dataclasses import field
from typing import Any


def option(
    default: Any, doc: str, *, choices: tuple[str, ...] = (), least: float | None = None, most: float | None = None
) -> Any:
    """A dataclass field with its documentation.

    `choices` lists the only values allowed, `least` and `most` the smallest and largest number allowed (where `most` is
    not given, `validate` has one by type); `validate` enforces them and `docs/options.md` shows them. A list, a dict or
    a class as `default` is made anew for every instance.
    """
    metadata = {"doc": doc, "choices": choices, "least": least, "most": most}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)
