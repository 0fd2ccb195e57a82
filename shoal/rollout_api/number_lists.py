"""A first look at a posted group: its lists of numbers, read by simdjson without an object for each number.

They are nearly all of a group. What a look is not sure of is left to the whole way in `intake.py`, which says what is
wrong; a look never says no.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from msgspec import json as msgjson
from simdjson import Array, Object, Parser

from shoal.rollout_api.protocol import NOT_TRAINED

INTEGERS = ("tokens", "masks")
FLOATS = ("advantages", "ref_logprobs", "inference_logprobs")
LARGEST_ID = 2**31
KEPT = 256 * 1024
"""The parser that is kept grows with what it reads: longer bodies get one of their own."""
# How a string may hide a bracket.
ESCAPED = (b"\\u005b", b"\\u005B")
PARSER = Parser()


class Look(NamedTuple):
    """What a look found.

    `lengths`: tokens of each sequence; `names`: all fields; `rest`: those not looked at and not null, as JSON.
    """

    lengths: list[int]
    names: tuple[str, ...]
    rest: dict[str, bytes]


def look_at(body: bytes) -> Look | None:
    """The lists of numbers in a group, when they are right beyond doubt, and the rest is JSON; None if unsure.

    Right are rows as long as those of `tokens`, ids and labels within their bounds, finite numbers.
    """
    try:
        group = (PARSER if len(body) <= KEPT else Parser()).parse(body)
        return _look(group, body) if isinstance(group, Object) else None
    except (ValueError, TypeError, KeyError, RuntimeError):
        return None


def _look(group: Any, body: bytes) -> Look | None:
    names = tuple(group.keys())
    if len(set(names)) < len(names) or body[:1] != b"{" or body[-1:] != b"}":
        return None
    lengths = [len(row) for row in group["tokens"]]
    if not lengths or 0 in lengths:
        return None
    lists = 0
    rest: dict[str, bytes] = {}
    for name in names:
        value = group[name]
        if value is None:
            continue
        if name in INTEGERS or name in FLOATS:
            if not isinstance(value, Array) or not _are_right(name, value, lengths):
                return None
            lists += 1
        else:
            rest[name] = _json(value)
    # The flat view of an array does not tell [1, [2]] from [1, 2]; the number of lists does.
    nested = sum(map(_count_lists, rest.values()))
    if _count_lists(body) != lists * (1 + len(lengths)) + nested or (nested and any(one in body for one in ESCAPED)):
        return None
    return Look(lengths, names, rest)


def _are_right(name: str, rows: Any, lengths: list[int]) -> bool:
    if [len(row) for row in rows] != lengths:
        return False
    if name in FLOATS:
        # simdjson takes no number that is not finite.
        return memoryview(rows.as_buffer(of_type="d")).nbytes == 8 * sum(lengths)
    ids = np.frombuffer(rows.as_buffer(of_type="i"), np.int64)
    real = ids[ids != NOT_TRAINED] if name == "masks" else ids
    return ids.size == sum(lengths) and not ((real < 0) | (real >= LARGEST_ID)).any()


def _json(value: Any) -> bytes:
    return msgjson.encode(value) if isinstance(value, str | int | float) else value.mini


def _count_lists(text: bytes) -> int:
    return int(np.count_nonzero(np.frombuffer(text, np.uint8) == ord("[")))
