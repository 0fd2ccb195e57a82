"""The judge's side of the questions: handles of the program's objects, and the one that asks about them."""

from __future__ import annotations

import builtins
import sys

from wire import Broken, decode, encode, get, put

TYPE_CHECKING = False  # importing `typing` would take longer than most programs
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

LONGEST_ITERATOR = 100_000
PLAIN: dict[type, Any] = {int: int.__pos__, float: float.__pos__, str: str.__str__}
ASKED_DUNDERS = ("__name__", "__doc__", "__dict__")


class ProgramError(Exception):
    """The program raised what is no ordinary built-in exception (or did so while it was loaded)."""


class Unsupported(Exception):
    """The test hands the program an object that cannot be sent."""


class Opaque(TypeError):
    """The test uses an operator on an object of the program's own."""


class Asker:
    """Sends questions over `write` and reads answers with `read`.

    `spoiled` says why the test can no longer pass, whatever it catches: the program's process ended or sent no message,
    or an object of the program's was used as if it were a value.
    """

    def __init__(self, read: Callable[[int], bytes], write: int) -> None:
        self.read, self.write = read, write
        self.functions: list[Callable[..., Any]] = []
        self.exceptions: dict[int, type] = {}
        self.broken = False
        self.spoiled = ""
        self.last_raised: BaseException | None = None

    def loaded(self) -> dict[str, tuple[Any, Any]]:
        """What the program defines: name to encoded value, and to the standard module that it says to have it from."""
        try:
            word, content = get(self.read)
            if word == "loaded":
                return {str(name): (value, origin) for name, value, origin in content}
            kind, text = content
        except (ValueError, TypeError) as error:
            raise Broken("no message") from error
        raise ProgramError(f"{kind}: {text}")

    def ask(self, word: str, *args: Any) -> Any:
        """What the program's process gives, or raises what it raised."""
        put_args = self.encode(list(args))
        try:
            return self._answer(word, put_args, args)
        except Broken as error:
            self.broken, self.spoiled = True, f"the program's process: {error}"
            raise

    def _answer(self, word: str, put_args: Any, args: tuple[Any, ...]) -> Any:
        try:
            put(self.write, [word, put_args])
        except BrokenPipeError as error:
            raise Broken("the other side ended") from error
        while True:
            message = get(self.read)
            try:
                if message[0] == "callback":
                    number, given, named = message[1]
                    self.call_back(number, given, named)
                    continue
                said, content, changed, text = message
                updates = [(local, change[0]) for local, change in zip(args[2:], changed[2:], strict=False) if change]
                sys.stdout.write(text)
            except (ValueError, TypeError, IndexError, KeyError) as error:
                raise Broken("no message") from error
            for local, change in updates:
                update(local, self.decode(change))
            if said == "returned":
                return self.defined(content) if word == "getattr" else self.decode(content)
            self.last_raised = self.raised(content)
            raise self.last_raised

    def raised(self, content: Any) -> Exception:
        """The exception here that stands for one there."""
        try:
            kind, text = content
            name, text = str(kind[1][1]), str(text)
        except (ValueError, TypeError, IndexError) as error:
            raise Broken("no message") from error
        kind = self.defined(kind)
        if isinstance(kind, type) and issubclass(kind, Exception):
            try:
                return kind(text)
            except TypeError:  # some take more than a text
                return ProgramError(f"{name}: {text}")
        return ProgramError(f"{name}: {text}")

    def call_back(self, number: int, args: Any, kwargs: Any) -> None:
        """The program calls a function that the test gave it."""
        function = self.functions[number]
        try:
            reply = ["returned", self.encode(function(*self.decode(args), **self.decode(kwargs)))]
        except Exception as error:  # noqa: BLE001 - it is the program that called, so it gets the exception
            reply = ["raised", [type(error).__name__, str(error)]]
        put(self.write, reply)

    def encode(self, value: Any) -> Any:
        return encode(value, self.by_number)

    def by_number(self, value: Any) -> Any:
        if type(value) is Handle or type(value) is Iterator:
            return ["yours", object.__getattribute__(value, "number")]
        for plain, convert in PLAIN.items():
            if isinstance(value, plain):
                return convert(value)  # of a subclass: the value without it
        if isinstance(value, type):
            for number, kind in self.exceptions.items():
                if kind is value:
                    return ["yours", number]
        if hasattr(type(value), "__next__") and hasattr(type(value), "__iter__"):
            items = []
            for item in value:
                items.append(item)
                if len(items) > LONGEST_ITERATOR:
                    raise ProgramError("the test gives the program a very long iterator")
            return ["iterator", self.encode(items)]
        if callable(value):
            self.functions.append(value)
            return ["callback", len(self.functions) - 1]
        raise Unsupported(f"the test gives the program a {type(value).__name__}, which cannot be sent")

    def decode(self, content: Any) -> Any:
        return decode(content, self.from_number)

    def from_number(self, tag: Any, content: Any) -> Any:
        try:
            number, name, *_ = content
            if tag in ("object", "exception", "iterator") and type(number) is int and type(name) is str:
                return (Iterator if tag == "iterator" else Handle)(self, number, name)
        except (ValueError, TypeError) as error:
            raise Broken("no value") from error
        raise Broken("no value")

    def defined(self, content: Any) -> Any:
        """A value that has a name in the program. An exception is a class of this process's that stands for the
        program's, so that a test can catch it."""
        if type(content) is not list or len(content) != 2 or content[0] != "exception":
            return self.decode(content)
        try:
            number, name, base = content[1]
            if number not in self.exceptions:
                parent = getattr(builtins, base)
                parent = parent if issubclass(parent, Exception) else Exception
                # A built-in exception is itself: a test may raise and catch it.
                self.exceptions[number] = parent if parent.__name__ == name else type(name, (parent,), {})
            return self.exceptions[number]
        except (ValueError, TypeError, AttributeError) as error:
            raise Broken("no value") from error


def update(local: Any, new: Any) -> None:
    """The program changed what it was given; so does this."""
    if type(local) is not type(new):
        return
    if isinstance(local, (list, bytearray)):
        local[:] = new
    elif isinstance(local, (dict, set)):
        local.clear()
        local.update(new)


class Remote:
    """An object of the program's own. It can be given back to the program, called, and asked for its attributes, which
    are plain values or handles. It is no value: every operator on it is an error here, and the test has failed even
    where it catches that, for an operator of the program's own would learn what it is compared with."""

    __slots__ = ("asker", "kind", "number")

    def __init__(self, asker: Asker, number: int, kind: str) -> None:
        object.__setattr__(self, "asker", asker)
        object.__setattr__(self, "number", number)
        object.__setattr__(self, "kind", kind)

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__") and name not in ASKED_DUNDERS:
            return object.__getattribute__(self, name)
        return object.__getattribute__(self, "asker").ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        object.__getattribute__(self, "asker").ask("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        object.__getattribute__(self, "asker").ask("delattr", self, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return object.__getattribute__(self, "asker").ask("call", self, kwargs, *args)

    def __eq__(self, other: object) -> bool:
        return False if other is None else _refuse(self, "==")

    def __ne__(self, other: object) -> bool:
        return True if other is None else _refuse(self, "!=")

    def __repr__(self) -> str:
        return f"<{object.__getattribute__(self, 'kind')} of the program>"


class Handle(Remote):
    """One that is no iterator."""

    __slots__ = ()


class Iterator(Remote):
    """An iterator of a built-in kind, such as a generator. Its items are fetched many at a time, so that the program
    does not see at which one the test stops."""

    __slots__ = ("ended", "fetched", "items")

    def __init__(self, asker: Asker, number: int, kind: str) -> None:
        super().__init__(asker, number, kind)
        for name, value in (("items", iter(())), ("fetched", 0), ("ended", False)):
            object.__setattr__(self, name, value)

    def __iter__(self) -> Iterator:
        return self

    def __next__(self) -> Any:
        get = object.__getattribute__
        for item in get(self, "items"):
            return item
        if get(self, "ended"):
            raise StopIteration
        asked = get(self, "asker").ask("items", self)
        if type(asked) is not tuple or len(asked) != 2 or type(asked[0]) is not list or type(asked[1]) is not bool:
            _refuse(self, "iter")
        items, ended = asked
        fetched = get(self, "fetched") + len(items)
        if not ended and (not items or fetched > LONGEST_ITERATOR):
            _refuse(self, f"more than {LONGEST_ITERATOR} items")
        for name, value in (("items", iter(items)), ("fetched", fetched), ("ended", ended)):
            object.__setattr__(self, name, value)
        return next(self)


OPERATORS = (
    *(
        "lt",
        "le",
        "gt",
        "ge",
        "hash",
        "bool",
        "len",
        "contains",
        "getitem",
        "setitem",
        "delitem",
        "reversed",
        "dir",
        "iter",
    ),
    *("neg", "pos", "abs", "invert", "int", "float", "complex", "index", "round", "trunc", "floor", "ceil", "bytes"),
    *("instancecheck", "subclasscheck", "enter", "exit", "await", "aiter", "fspath", "reduce_ex", "mro_entries"),
)
ARITHMETIC = ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "divmod", "pow", "lshift", "rshift")


def _refuse(handle: Remote, operator: str) -> Any:
    reason = f"{operator} of a {object.__getattribute__(handle, 'kind')}, an object of the program's own, is no value"
    object.__getattribute__(handle, "asker").spoiled = reason
    raise Opaque(reason)


def _refused(name: str) -> Callable[..., Any]:
    return lambda self, *args: _refuse(self, name)


for _name in OPERATORS:
    # Python asks an iterator for its length by itself, to know how much room to make.
    setattr(Handle if _name in ("iter", "len", "contains") else Remote, f"__{_name}__", _refused(_name))
for _name in (*ARITHMETIC, "and", "or", "xor"):
    for _kind in ("", "r", "i"):
        setattr(Remote, f"__{_kind}{_name}__", _refused(_name))
