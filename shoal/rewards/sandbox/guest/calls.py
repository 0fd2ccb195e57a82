"""How the judge compares what a call gives with a result that is known as JSON."""

from __future__ import annotations

from bare_json import loads

TYPE_CHECKING = False  # importing `typing` would take longer than most programs
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

TOLERANCE = 1e-6  # relative, where the known result is a float
NEAR_ZERO = 1e-9


def check_call(function: Callable[..., Any], given: str, wanted: str, wrapped: bool) -> None:
    """Raises AssertionError where the result is another. `wrapped`: also the one item of the known list is right."""
    result, right = function(*loads(given.encode())), loads(wanted.encode())
    if not (same(result, right) or (wrapped and same(result, right[0]))):
        raise AssertionError(f"{given[:60]} gives {str(result)[:60]}, not {wanted[:60]}")


def same(got: Any, wanted: Any) -> bool:
    """JSON knows one kind of list, and texts as keys."""
    if type(wanted) is list:
        if not isinstance(got, (list, tuple)) or len(got) != len(wanted):
            return False
        return all(same(one, other) for one, other in zip(got, wanted, strict=True))
    if type(wanted) is dict:
        if not isinstance(got, dict):
            return False
        named = {key if type(key) is str else str(key): value for key, value in got.items()}
        return named.keys() == wanted.keys() and all(same(named[key], wanted[key]) for key in wanted)
    if type(wanted) is float and type(got) in (int, float):
        return got == wanted or abs(got - wanted) <= max(TOLERANCE * max(abs(got), abs(wanted)), NEAR_ZERO)
    if type(wanted) is bool or type(got) is bool:
        return got is wanted
    return bool(got == wanted)
