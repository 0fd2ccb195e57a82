"""The judge's side of the questions: objects of the program's, and the one that asks about them."""

from __future__ import annotations

import builtins
import sys

from wire import Broken, decode, encode, get, import_module, put

TYPE_CHECKING = False  # importing `typing` would take longer than most programs
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

LONGEST_ITERATOR = 100_000
STANDARD_MODULES = sys.stdlib_module_names


class ProgramError(Exception):
    """The program raised what is no ordinary built-in exception (or did so while it was loaded)."""


class Unsupported(Exception):
    """The test hands the program an object that cannot be sent."""


class Asker:
    """Sends questions over `write` and reads answers with `read`."""

    def __init__(self, read: Callable[[int], bytes], write: int) -> None:
        self.read, self.write = read, write
        self.functions: list[Callable[..., Any]] = []
        self.exceptions: dict[int, type] = {}

    def loaded(self) -> dict[str, Any]:
        """What the program defines: name to encoded value."""
        try:
            word, content = get(self.read)
            if word == "loaded":
                return {str(name): value for name, value in content}
            kind, text = content
        except (ValueError, TypeError) as error:
            raise Broken("no message") from error
        raise ProgramError(f"{kind}: {text}")

    def ask(self, word: str, *args: Any) -> Any:
        """What the program's process gives, or raises what it raised."""
        put_args = self.encode(list(args))
        try:
            put(self.write, [word, put_args])
        except BrokenPipeError as error:
            raise Broken("the other side ended") from error
        while True:
            message = get(self.read)
            try:
                if message[0] == "callback":
                    self.call_back(*message[1])
                    continue
                word, content, changed, text = message
            except (ValueError, TypeError, IndexError, KeyError) as error:
                raise Broken("no message") from error
            sys.stdout.write(text)
            for local, change in zip(args[2:], changed[2:], strict=False):
                if change is not None:
                    self.update(local, self.decode(change[0]))
            if word == "returned":
                return self.decode(content)
            raise self.raised(*content)

    def raised(self, kind: Any, text: str) -> Exception:
        """The exception here that stands for one there."""
        kind = self.decode(kind)
        if isinstance(kind, type) and issubclass(kind, Exception):
            try:
                return kind(text)
            except TypeError:  # some take more than a text
                return ProgramError(f"{kind.__name__}: {text}")
        return ProgramError(f"{getattr(kind, '__name__', kind)}: {text}")

    def update(self, local: Any, new: Any) -> None:
        """The program changed what it was given; so does this."""
        if isinstance(local, (list, bytearray)):
            local[:] = new
        elif isinstance(local, (dict, set)):
            local.clear()
            local.update(new)

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

    def by_number(self, value: Any) -> list[Any]:
        if type(value) is Remote:
            return ["yours", object.__getattribute__(value, "number")]
        if isinstance(value, type) and value in self.exceptions.values():
            return ["yours", next(number for number, kind in self.exceptions.items() if kind is value)]
        if hasattr(type(value), "__next__") and hasattr(type(value), "__iter__"):
            items = []
            for item in value:
                items.append(item)
                if len(items) > LONGEST_ITERATOR:
                    raise Unsupported("the test gives the program a very long iterator")
            return ["iterator", self.encode(items)]
        if callable(value):
            self.functions.append(value)
            return ["callback", len(self.functions) - 1]
        raise Unsupported(f"the test gives the program a {type(value).__name__}, which cannot be sent")

    def decode(self, content: Any) -> Any:
        return decode(content, self.from_number)

    def from_number(self, tag: Any, content: Any) -> Any:
        try:
            number, name, *rest = content
            if tag == "module" and name in STANDARD_MODULES:
                return import_module(name)
            if tag == "exception":
                return self.exception(number, name, rest[0])
            if tag in ("module", "object"):
                return Remote(self, int(number))
        except (ValueError, TypeError, IndexError) as error:
            raise Broken("no value") from error
        raise Broken("no value")

    def exception(self, number: int, name: str, base: str) -> type:
        """A class of this process's that stands for an exception of the program's, so that a test can catch it."""
        if number not in self.exceptions:
            parent = getattr(builtins, base, None)
            if not (isinstance(parent, type) and issubclass(parent, BaseException)):
                raise Broken("no value")
            parent = parent if issubclass(parent, Exception) else Exception
            self.exceptions[number] = type(name, (parent,), {})
        return self.exceptions[number]


class Remote:
    """An object of the program's. It is never equal to plain data, and no number can be made of it."""

    def __init__(self, asker: Asker, number: int) -> None:
        object.__setattr__(self, "asker", asker)
        object.__setattr__(self, "number", number)

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__") and name not in ("__name__", "__doc__", "__dict__"):
            return object.__getattribute__(self, name)
        return ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        ask("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        ask("delattr", self, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return ask("call", self, kwargs, *args)

    def __instancecheck__(self, value: Any) -> bool:
        return type_checked(bool, ask("isinstance", value, self))

    def __iter__(self) -> Iterator[Any]:
        iterator = ask("iter", self)
        if type(iterator) is not Remote:
            raise TypeError("what iter gave is no iterator")
        while True:
            try:
                item = ask("next", iterator)
            except StopIteration:
                return
            yield item

    def __next__(self) -> Any:
        return ask("next", self)

    def __contains__(self, wanted: Any) -> bool:
        return any(item == wanted for item in self)

    def __len__(self) -> int:
        return type_checked(int, ask("len", self))

    def __bool__(self) -> bool:
        return type_checked(bool, ask("bool", self))

    def __hash__(self) -> int:
        return type_checked(int, ask("hash", self))

    def __str__(self) -> str:
        return type_checked(str, ask("str", self))

    def __repr__(self) -> str:
        return type_checked(str, ask("repr", self))

    def __getitem__(self, key: Any) -> Any:
        return ask("getitem", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        ask("setitem", self, key, value)

    def __delitem__(self, key: Any) -> None:
        ask("delitem", self, key)


def ask(word: str, *args: Any) -> Any:
    """Asks the process that holds the first remote object among the arguments."""
    remote = next(value for value in args if type(value) is Remote)
    return object.__getattribute__(remote, "asker").ask(word, *args)


def type_checked(kind: type, value: Any) -> Any:
    """Python itself asks for the type where it calls one of the methods above."""
    if type(value) is not kind:
        raise TypeError(f"not {kind.__name__}")
    return value


def _comparison(name: str) -> Callable[[Any, Any], Any]:
    def compare(self: Any, other: Any) -> Any:
        if type(other) is not Remote:
            return NotImplemented  # for == that means: not equal
        return type_checked(bool, ask(name, self, other))

    return compare


def _arithmetic(name: str, swapped: bool) -> Callable[[Any, Any], Any]:
    def compute(self: Any, other: Any) -> Any:
        result = ask(name, other, self) if swapped else ask(name, self, other)
        # Else an object whose difference from anything is 0 would be close to every expected number.
        if type(other) is not Remote and type(result) is not Remote:
            raise TypeError(f"{name} of an object and {type(other).__name__} must be an object")
        return result

    return compute


for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Remote, f"__{_name}__", _comparison(_name))
for _name in ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor"):
    _function = {"and": "and_", "or": "or_"}.get(_name, _name)
    setattr(Remote, f"__{_name}__", _arithmetic(_function, swapped=False))
    setattr(Remote, f"__r{_name}__", _arithmetic(_function, swapped=True))
