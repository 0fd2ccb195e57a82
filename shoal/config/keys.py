"""The configuration's keys: what exists, of what type, and which one a mistyped word meant."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from difflib import SequenceMatcher
from functools import cache, reduce
from typing import Any, get_args, get_type_hints

from shoal.config.root import ShoalConfig

_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a string",
    Any: "a value",
    list[str]: "a list of strings",
    list[int]: "a list of whole numbers",
    list[float]: "a list of numbers",
    dict[str, str]: "names by name, such as {prompt: question}",
    dict[str, float]: "numbers by name, such as {gsm8k: 1.0}",
    dict[str, Any]: "values by name, such as {key: value}",
}


@dataclass(frozen=True)
class Key:
    """One option: `type` without its None, `node` where it holds further keys."""

    name: str
    type: Any
    optional: bool
    default: Any
    doc: str
    choices: tuple[str, ...]
    least: float | None
    most: float | None
    node: bool

    @property
    def wanted(self) -> str:
        """The type in words, as an error line says it."""
        if self.node:
            return "a value: it holds other keys"
        return _WORDS[self.type] + (" or null" if self.optional else "")

    @property
    def entry_wanted(self) -> str:
        """The type of an entry of a dict-typed key, in words."""
        return _WORDS[get_args(self.type)[1]]


@cache
def all_keys() -> dict[str, Key]:
    """Every key of the configuration by its dotted name, nodes included, in the order of declaration."""
    return {key.name: key for key in _walk(ShoalConfig, "")}


def _walk(node: type, prefix: str) -> Iterable[Key]:
    hints = get_type_hints(node)
    for entry in fields(node):
        hint = hints[entry.name]
        optional = type(None) in get_args(hint)
        inner = get_args(hint)[0] if optional else hint
        name = prefix + entry.name
        default = entry.default if entry.default_factory is MISSING else entry.default_factory()
        is_node = is_dataclass(inner)
        metadata = entry.metadata
        yield Key(
            name,
            inner,
            optional,
            default,
            metadata["doc"],
            metadata["choices"],
            metadata["least"],
            metadata["most"],
            is_node,
        )
        if isinstance(inner, type) and is_node:
            yield from _walk(inner, name + ".")


def value_of(config: ShoalConfig, name: str) -> Any:
    """The value of a dotted key."""
    return reduce(getattr, name.split("."), config)


def set_value(config: ShoalConfig, name: str, value: Any) -> None:
    """Sets a dotted key, in place."""
    node, _, last = name.rpartition(".")
    setattr(value_of(config, node) if node else config, last, value)


def holder_of(name: str) -> Key | None:
    """The dict-typed key that `name` is an entry of: reward.verifiers for reward.verifiers.gsm8k."""
    parent = name
    while "." in parent:
        parent = parent.rpartition(".")[0]
        key = all_keys().get(parent)
        if key is not None and getattr(key.type, "__origin__", None) is dict:
            return key
    return None


def nearest(word: str, names: Iterable[str]) -> str:
    """The name most like `word`. The last part of a dotted name weighs as much as the whole: lr finds optimizer.lr."""
    tail = word.rpartition(".")[2]

    def likeness(name: str) -> float:
        whole = SequenceMatcher(None, word, name).ratio()
        return whole + SequenceMatcher(None, tail, name.rpartition(".")[2]).ratio()

    return max(names, key=likeness)


def unknown_key(name: str) -> str:
    """The error line for a key that does not exist."""
    leaves = [key.name for key in all_keys().values() if not key.node]
    return f"there is no key {name!r}; the nearest is {nearest(name, leaves)!r} (all keys: docs/options.md)"
