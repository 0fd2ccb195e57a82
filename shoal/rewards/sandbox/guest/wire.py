"""Values between the program's process and the judge's, as JSON: plain data by value, all else by number.

A message is four bytes of length and then JSON. A value is a string, number, boolean or null as such, and anything else
a list of a tag and its content. Only the tags below can be read, so no message makes the reader run anything.
"""

from __future__ import annotations

import builtins
import posix
import sys

from bare_json import dumps, loads

TYPE_CHECKING = False  # importing `typing` would take longer than most programs
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

LONGEST = 16 * 2**20
PLAIN: dict[type, Any] = {int: int.__pos__, float: float.__pos__, str: str.__str__}
SEQUENCES = {
    "list": "builtins",
    "tuple": "builtins",
    "set": "builtins",
    "frozenset": "builtins",
    "deque": "collections",
}
MAPPINGS = {"dict": "builtins", "OrderedDict": "collections", "Counter": "collections"}
TEXTS = {"Fraction": "fractions", "Decimal": "decimal", "complex": "builtins"}  # numbers that are sent as text
DATES = {"date": "datetime", "datetime": "datetime", "time": "datetime"}
OTHERS = {"defaultdict": "collections", "timedelta": "datetime"}
MODULES = {**SEQUENCES, **MAPPINGS, **TEXTS, **DATES, **OTHERS}


class Broken(Exception):
    """The other side ended, or sent what is no message."""


def put(descriptor: int, message: list[Any]) -> None:
    """Sends one message."""
    content = dumps(message)
    view = memoryview(len(content).to_bytes(4, "little") + content)
    while view:
        view = view[posix.write(descriptor, view) :]


def get(read: Callable[[int], bytes]) -> Any:
    """One message; `read(n)` gives at most n bytes, and none at the end."""
    length = int.from_bytes(_exactly(read, 4), "little")
    if length > LONGEST:
        raise Broken("a message is too long")
    try:
        return loads(_exactly(read, length))
    except (ValueError, RecursionError) as error:
        raise Broken("no message") from error


def _exactly(read: Callable[[int], bytes], length: int) -> bytes:
    content = b""
    while len(content) < length:
        part = read(min(length - len(content), 65536))
        if not part:
            raise Broken("the other side ended")
        content += part
    return content


def import_module(name: str) -> Any:
    """As `importlib.import_module`, without importing that."""
    __import__(name)
    return sys.modules[name]


def _type(tag: str) -> Any:
    """Imported where it is needed: these modules take longer to load than most programs to run."""
    return getattr(import_module(MODULES[tag]), tag)


def encode(value: Any, by_number: Callable[[Any], list[Any]]) -> Any:
    """`by_number(value)` gives the tagged list for what is not plain."""
    kind: Any = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    for plain, convert in PLAIN.items():
        if isinstance(value, plain):
            return convert(value)  # of a subclass: the value without it
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return ["namedtuple", [kind.__name__, list(kind._fields), [encode(item, by_number) for item in value]]]
    tag = kind.__name__
    if tag in MODULES and kind is _type(tag):
        if tag in SEQUENCES:
            return [tag, [encode(item, by_number) for item in value]]
        if tag in MAPPINGS or tag == "defaultdict":
            pairs = [[encode(key, by_number), encode(item, by_number)] for key, item in value.items()]
            return ["dict" if tag == "defaultdict" else tag, pairs]
        if tag in TEXTS:
            return [tag, str(value)]
        if tag in DATES:
            return [tag, value.isoformat()]
        return [tag, [value.days, value.seconds, value.microseconds]]
    if kind in (bytes, bytearray):
        return [kind.__name__, value.hex()]
    if kind is range:
        return ["range", [value.start, value.stop, value.step]]
    if value is Ellipsis or value is NotImplemented:
        return ["constant", str(value)]
    if kind in (type, type(len)):
        name = str(value.__name__)
        if getattr(builtins, name, None) is value:
            return ["builtin", name]
    if kind.__module__ == "numpy" and hasattr(value, "tolist"):
        return encode(value.tolist(), by_number)
    return by_number(value)


def decode(content: Any, from_number: Callable[[Any, Any], Any]) -> Any:
    """`from_number(tag, content)` gives the object for a tag that is not plain data."""
    if not isinstance(content, list):
        if isinstance(content, dict):
            raise Broken("no value")
        return content
    try:
        tag, inside = content
        if tag in SEQUENCES:
            return _type(tag)(decode(item, from_number) for item in inside)
        if tag in MAPPINGS:
            pairs = [(decode(key, from_number), decode(item, from_number)) for key, item in inside]
            return _type(tag)(dict(pairs) if tag == "Counter" else pairs)
        if tag in TEXTS:
            return _type(tag)(inside)
        if tag in DATES:
            return _type(tag).fromisoformat(inside)
        if tag in ("bytes", "bytearray"):
            return getattr(builtins, tag).fromhex(inside)
        if tag == "namedtuple":
            name, fields, values = inside
            kind = import_module("collections").namedtuple(name, fields, rename=True)
            return kind(*[decode(item, from_number) for item in values])
        if tag in ("range", "timedelta"):
            return (range if tag == "range" else _type(tag))(*inside)
        if tag == "constant":
            return {"Ellipsis": Ellipsis, "NotImplemented": NotImplemented}[inside]
        if tag == "builtin":
            return getattr(builtins, inside)
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
        raise Broken("no value") from error
    return from_number(tag, inside)


if hasattr(sys, "set_int_max_str_digits"):
    sys.set_int_max_str_digits(0)
