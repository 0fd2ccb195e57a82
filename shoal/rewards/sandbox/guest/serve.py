"""The program's process of an assert test: answers the judge's questions about what the program defines.

Everything here is in the program's reach, and nothing here decides anything.
"""

from __future__ import annotations

import builtins
import io
import posix
import sys
import time

from names import OWN_MODULES
from wire import decode, encode, get, put

TYPE_CHECKING = False  # importing `typing` would take longer than most programs
if TYPE_CHECKING:
    from typing import Any

ModuleType = type(sys)
CHANGEABLE = (list, dict, set, bytearray)
LONGEST_OUTPUT = 2**20
MOST_ITEMS, ITEM_SECONDS = 10_000, 1.0  # of one answer about an iterator


class Server:
    """Holds the objects that were sent by number."""

    def __init__(self, read: int, write: int) -> None:
        self.read, self.write = read, write
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}
        self.output = io.StringIO()

    def by_number(self, value: Any) -> list[Any]:
        number = self.numbers.setdefault(id(value), len(self.objects))
        if number == len(self.objects):
            self.objects.append(value)  # kept, so that no other object gets its id
        kind = type(value)
        if isinstance(value, type) and issubclass(value, BaseException):
            base = next(base for base in value.__mro__ if getattr(builtins, base.__name__, None) is base)
            return ["exception", [number, value.__name__, base.__name__]]
        if kind.__module__ in ("builtins", "itertools") and hasattr(kind, "__next__"):
            return ["iterator", [number, kind.__name__]]
        return ["object", [number, kind.__name__]]

    def encode(self, value: Any) -> Any:
        try:
            return encode(value, self.by_number)
        except RecursionError:
            return self.by_number(value)

    def define(self, name: str, value: Any) -> tuple[Any, str | None]:
        """What the judge is told of a name of the program's."""
        return self.encode(value), origin_of(name, value)

    def from_number(self, tag: str, content: Any) -> Any:
        if tag == "yours":
            return self.objects[content]
        if tag == "iterator":
            return iter(decode(content, self.from_number))
        return lambda *args, **kwargs: self.ask_back(content, args, kwargs)  # tag "callback"

    def decode(self, content: Any) -> Any:
        return decode(content, self.from_number)

    def ask_back(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Calls a function of the test's, which was an argument."""
        put(self.write, ["callback", [number, self.encode(list(args)), self.encode(kwargs)]])
        while True:
            word, content = self.next()
            if word == "returned":
                return self.decode(content)
            if word == "raised":
                raise getattr(builtins, content[0], RuntimeError)(content[1])
            self.answer(word, content)

    def next(self) -> Any:
        return get(lambda length: posix.read(self.read, length))

    def answer(self, word: str, content: Any) -> None:
        args = self.decode(content)
        before = [self.encode(arg) if isinstance(arg, CHANGEABLE) else None for arg in args]
        try:
            value = self.encode(self.do(word, args))
        except BaseException as error:  # noqa: BLE001 - the program may raise anything, SystemExit too
            reply = ["raised", [self.by_number(type(error)), text_of(error)]]
        else:
            reply = ["returned", value]
        if word == "call":  # a function may change what it is given
            after = [self.encode(arg) if isinstance(arg, CHANGEABLE) else None for arg in args]
            changed = [None if new == old else [new] for old, new in zip(before, after, strict=True)]
        else:
            changed = []
        text = self.output.getvalue()[:LONGEST_OUTPUT]
        self.output.seek(0)
        self.output.truncate()
        put(self.write, [*reply, changed, text])

    def do(self, word: str, args: list[Any]) -> Any:
        if word == "call":
            function, kwargs, *rest = args
            return function(*rest, **kwargs)
        if word == "getattr":
            return getattr(*args)
        if word == "setattr":
            return setattr(*args)
        if word == "delattr":
            return delattr(*args)
        return first_items(args[0])  # word "items"


def first_items(iterator: Any) -> tuple[list[Any], bool]:
    """The next of its items, and whether there are no more."""
    items: list[Any] = []
    ends = time.monotonic() + ITEM_SECONDS
    for item in iterator:
        items.append(item)
        if len(items) >= MOST_ITEMS or time.monotonic() > ends:
            return items, False
    return items, True


def text_of(error: BaseException) -> str:
    """Its text, which may be the program's own to make."""
    try:
        return str(error)[:500]
    except BaseException as worse:  # noqa: BLE001 - as the error itself
        return f"its text raises a {type(worse).__name__}"


def origin_of(name: str, value: Any) -> str | None:
    """The standard module that has this value under this name, or the name of the module that this is."""
    if isinstance(value, ModuleType):
        return value.__name__
    modules = ((module, sys.modules.get(module)) for module in OWN_MODULES)
    return next((module for module, there in modules if there and getattr(there, name, None) is value), None)


def serve(source: str, read: int, write: int) -> None:
    server = Server(read, write)
    sys.stdin = io.StringIO()
    sys.stdout = server.output
    program = ModuleType("program")
    sys.modules["program"] = program
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]  # as without -S
    try:
        exec(compile(source, "program.py", "exec", dont_inherit=True), vars(program))
    except BaseException as error:  # noqa: BLE001 - as above
        put(write, ["raised", [type(error).__name__, text_of(error)]])
        return
    names = [name for name in vars(program) if not name.startswith("__")]
    put(write, ["loaded", [[name, *server.define(name, vars(program)[name])] for name in names]])
    while True:
        server.answer(*server.next())
