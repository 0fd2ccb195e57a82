"""JSON by the C functions that the module `json` is built on: importing that one, and with it `re` and `enum`, would
take longer than a short program."""

from __future__ import annotations

from _json import encode_basestring_ascii, make_encoder, make_scanner

TYPE_CHECKING = False  # importing `typing` would take longer than most programs
if TYPE_CHECKING:
    from typing import Any


class _Context:
    """What a scanner takes from a `json.JSONDecoder`."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int = float, int
    parse_constant = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": -float("inf")}.__getitem__


def _refuse(value: Any) -> Any:
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON")


_scan = make_scanner(_Context())  # type: ignore[arg-type]  # which says that it takes a scanner
# As `json.dumps` has it, but that what holds itself ends in a RecursionError.
_encode = make_encoder(None, _refuse, encode_basestring_ascii, None, ": ", ", ", False, False, True)


def dumps(value: Any) -> bytes:
    """As `json.dumps`, in ASCII."""
    return "".join(_encode(value, 0)).encode()


def loads(content: bytes) -> Any:
    """As `json.loads`, of UTF-8 without space around it.

    Raises:
        ValueError: it is no JSON.
    """
    text = content.decode()
    try:
        value, end = _scan(text, 0)
    except (StopIteration, SystemError) as error:  # before Python 3.12 it looks for `json`'s own exception in vain
        raise ValueError("no JSON") from error
    if end != len(text):
        raise ValueError("more than one value")
    return value
