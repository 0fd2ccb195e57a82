"""The fast path for a posted group: simdjson checks its lists of numbers without a Python object for each number.

These lists are nearly all of a group's bytes. The fast path only accepts groups that are certainly valid. All others go
through the full check in `intake.py`, which reports errors; the fast path never refuses a group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from msgspec import json as msgjson
from simdjson import Object, Parser

from shoal.rollout_api.protocol import IDS, LARGEST, NOT_TRAINED

REQUIRED = ("tokens", "masks", "scores")
KEPT = 256 * 1024
"""The parser that is kept grows with what it reads: longer bodies get one of their own."""
# Escapes with which a string can hide a bracket.
ESCAPED = (b"\\u005b", b"\\u005B")
PARSER = Parser()


class FastParse(NamedTuple):
    """A group that the fast path accepted.

    `lengths`: tokens of each sequence; `names`: all fields; `rest`: those not checked yet and not null, as JSON.
    """

    lengths: list[int]
    names: tuple[str, ...]
    rest: dict[str, bytes]


def fast_parse(body: bytes) -> FastParse | None:
    """The group if its lists of numbers are certainly valid and the rest is JSON; None if unsure.

    Valid: rows as long as those of `tokens`, ids and labels within their bounds, finite numbers, one score per row.
    """
    try:
        group = (PARSER if len(body) <= KEPT else Parser()).parse(body)
        return _fast_parse(group, body) if isinstance(group, Object) else None
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError):
        return None


def _fast_parse(group: Mapping[str, Any], body: bytes) -> FastParse | None:
    names = tuple(group.keys())
    lengths = _lengths_of(group["tokens"])
    if len(set(names)) < len(names) or not lengths or 0 in lengths or body[:1] != b"{" or body[-1:] != b"}":
        return None
    total, lists = sum(lengths), 0
    rest: dict[str, bytes] = {}
    for name in names:
        value = group[name]
        if name in NUMBERS and (value is not None or name in REQUIRED):
            if (name != "tokens" and _lengths_of(value) != lengths) or not NUMBERS[name](value, total):
                return None
            lists += 1 + len(lengths)
        elif name == "scores":
            if not _are_finite(value, len(lengths)):
                return None
            lists += 1
        elif value is not None:
            rest[name] = _json(value)
    # The flat view of an array does not tell [1, [2]] from [1, 2]; the number of lists does.
    lists += sum(text.count(b"[") for text in rest.values())
    return FastParse(lengths, names, rest) if _count_lists(body) == lists and not _hides_lists(body) else None


def _lengths_of(rows: Any) -> list[int]:
    return list(map(len, rows))


def _are_ids(rows: Any, total: int) -> bool:
    ids = np.frombuffer(rows.as_buffer(of_type="u"), np.uint64)
    return ids.size == total and not np.count_nonzero(ids >= IDS)


def _are_labels(rows: Any, total: int) -> bool:
    labels = np.frombuffer(rows.as_buffer(of_type="i"), np.uint64)
    # Without their signs negative labels are large too.
    large = np.count_nonzero(labels >= IDS)
    return labels.size == total and large == np.count_nonzero(labels == NOT_TRAINED % 2**64)


def _are_finite(rows: Any, total: int) -> bool:
    # simdjson takes no number that is not finite.
    values = np.frombuffer(rows.as_buffer(of_type="d"), np.float64)
    return values.size == total and not (total and (values.max() > LARGEST or values.min() < -LARGEST))


NUMBERS: dict[str, Callable[[Any, int], bool]] = {
    "tokens": _are_ids,
    "masks": _are_labels,
    "advantages": _are_finite,
    "ref_logprobs": _are_finite,
    "inference_logprobs": _are_finite,
}
"""How a list of as many numbers as there are tokens is checked."""


def _json(value: Any) -> bytes:
    return msgjson.encode(value) if isinstance(value, str | int | float) else value.mini


def _hides_lists(text: bytes) -> bool:
    return b"\\" in text and any(escape in text for escape in ESCAPED)


def _count_lists(text: bytes) -> int:
    return int(np.count_nonzero(np.frombuffer(text, np.uint8) == ord("[")))
