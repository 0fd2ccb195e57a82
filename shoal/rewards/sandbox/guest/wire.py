"""Values between the program's process and the judge's, as JSON: plain data by value, all else by number.

A message is four bytes of length and then JSON. A value is a string, number, boolean or null as such, and anything else
a list of a tag and its content. What a reader makes of the tags below are values of exact built-in types (or of the
standard library's containers, numbers and dates) that it makes itself: no message names a function, a class or a module
of the reader's, so none makes it run anything.
"""

from __future__ import annotations

import posix
import sys

from bare_json import dumps, loads

TYPE_CHECKING = False  # importing `typing` would take longer than most programs
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

LONGEST = 16 * 2**20
LONGEST_DECIMAL = 10_000
SEQUENCES = {
    "list": "builtins",
    "tuple": "builtins",
    "set": "builtins",
    "frozenset": "builtins",
    "deque": "collections",
}
MAPPINGS = {"dict": "builtins", "OrderedDict": "collections", "Counter": "collections"}
DATES = {"date": "datetime", "datetime": "datetime", "time": "datetime"}
OTHERS = {"Fraction": "fractions", "Decimal": "decimal", "defaultdict": "collections", "timedelta": "datetime"}
MODULES = {**SEQUENCES, **MAPPINGS, **DATES, **OTHERS}
VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))


class Broken(Exception):
    """The other side ended, or sent what is no message."""


class NamedTuple(tuple):
    """A tuple whose parts also have names. Not made by `collections.namedtuple`, which runs a text with the names."""

    _fields: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in self._fields:
            raise AttributeError(name)
        return self[self._fields.index(name)]


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
    content = bytearray()
    while len(content) < length:
        part = read(min(length - len(content), 65536))
        if not part:
            raise Broken("the other side ended")
        content += part
    return bytes(content)


def import_module(name: str) -> Any:
    """As `importlib.import_module`, without importing that."""
    __import__(name)
    return sys.modules[name]


def _type(tag: str) -> Any:
    """Imported where it is needed: these modules take longer to load than most programs to run."""
    return getattr(import_module(MODULES[tag]), tag)


def encode(value: Any, by_number: Callable[[Any], list[Any]]) -> Any:
    """`by_number(value)` gives the tagged list for what is not plain, which a value of a subclass is not either."""
    kind: Any = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    tag = kind.__name__
    if tag in MODULES and kind is _type(tag):
        if tag in SEQUENCES:
            items = [encode(item, by_number) for item in value]
            return [tag, items] if tag not in ("set", "frozenset") or all(map(_hashable, items)) else by_number(value)
        if tag in MAPPINGS or tag == "defaultdict":
            pairs = [[encode(key, by_number), encode(item, by_number)] for key, item in value.items()]
            if not all(_hashable(key) for key, _ in pairs):
                return by_number(value)
            return ["dict" if tag == "defaultdict" else tag, pairs]
        if tag == "Fraction":
            return [tag, [value.numerator, value.denominator]]
        if tag == "Decimal":
            return [tag, str(value)]
        if tag in DATES:
            return [tag, value.isoformat()]
        return [tag, [value.days, value.seconds, value.microseconds]]
    if kind is complex:
        return ["complex", [value.real, value.imag]]
    if kind in (bytes, bytearray):
        return [tag, value.hex()]
    if kind is range:
        return ["range", [value.start, value.stop, value.step]]
    if kind in VIEWS:
        return [tag, [encode(item, by_number) for item in value]]
    if tuple in kind.__bases__ and hasattr(kind, "_fields"):
        return ["namedtuple", [list(kind._fields), [encode(item, by_number) for item in value]]]
    if kind.__module__ == "numpy" and hasattr(value, "tolist"):
        return encode(value.tolist(), by_number)
    return by_number(value)


def _hashable(content: Any) -> bool:
    """Whether an encoded value can be in a set, and equals what it equalled before."""
    if not isinstance(content, list):
        return True
    tag, inside = content
    if tag in ("tuple", "frozenset"):
        return all(map(_hashable, inside))
    if tag == "namedtuple":
        return all(map(_hashable, inside[1]))
    return tag in DATES or tag in ("Fraction", "Decimal", "timedelta", "complex", "bytes", "range")


def decode(content: Any, from_number: Callable[[Any, Any], Any]) -> Any:
    """`from_number(tag, content)` gives the object for a tag that is not plain data."""
    if not isinstance(content, list):
        if isinstance(content, dict):
            raise Broken("no value")
        return content
    try:
        tag, inside = content
        if type(tag) is not str:
            raise Broken("no value")
        if tag in SEQUENCES:
            return _type(tag)([decode(item, from_number) for item in inside])
        if tag in MAPPINGS:
            pairs = [(decode(key, from_number), decode(item, from_number)) for key, item in inside]
            return _type(tag)(dict(pairs) if tag == "Counter" else pairs)
        if tag in ("dict_keys", "dict_values", "dict_items"):
            return _view(tag, [decode(item, from_number) for item in inside])
        if tag == "Decimal":
            return _type(tag)(inside[:LONGEST_DECIMAL])
        if tag in DATES:
            return _type(tag).fromisoformat(inside)
        if tag == "bytes":
            return bytes.fromhex(inside)
        if tag == "bytearray":
            return bytearray.fromhex(inside)
        if tag == "namedtuple":
            fields, values = inside
            named = NamedTuple(decode(item, from_number) for item in values)
            named._fields = tuple(map(str, fields))
            return named
        if tag == "complex":
            return complex(*inside)
        if tag in ("Fraction", "timedelta", "range"):
            if not all(type(number) is int for number in inside):
                raise Broken("no value")
            return range(*inside) if tag == "range" else _type(tag)(*inside)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, ArithmeticError) as error:
        raise Broken("no value") from error
    return from_number(tag, inside)


def _view(tag: str, items: list[Any]) -> Any:
    if tag == "dict_keys":
        return dict.fromkeys(items).keys()
    return dict(items).items() if tag == "dict_items" else dict(enumerate(items)).values()


if hasattr(sys, "set_int_max_str_digits"):
    sys.set_int_max_str_digits(0)
