"""What a call in an actor gives, with errors as plain values: Ray's own form of them hides theirs."""

from __future__ import annotations

from typing import Any

from shoal.errors import ShoalError

Error = tuple[str, str, list[int]]
"""An error's kind, its line, and the completions that it names."""


def outcome(function: Any, *arguments: Any) -> tuple[Any, Error | None]:
    """(what a call returns, None), or (None, an error that Shoal or torch raises)."""
    try:
        return function(*arguments), None
    except (ShoalError, RuntimeError) as error:
        return None, (type(error).__name__, str(error), list(getattr(error, "completions", [])))
