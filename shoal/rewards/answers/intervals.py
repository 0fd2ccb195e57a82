r"""Sets of real numbers between constant ends: (-\infty, 3] \cup (5, \infty), x > 3, 2 \leq x < 5."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from shoal.rewards.answers.expression_values import close, complex_value, many_digits
from shoal.rewards.answers.expressions import Unsure, names_in, read_expression

UNION = re.compile(r"\\cup(?![A-Za-z])")
RELATION = re.compile(r"(<=|>=|[<>≤≥]|\\(?:leqslant|geqslant|leq|geq|le|ge|lt|gt)(?![A-Za-z]))")
MEMBER = re.compile(r"\s*([A-Za-z])\s*\\in(?![A-Za-z])(.*)", re.DOTALL)
NAME = re.compile(r"[A-DF-Za-df-hj-z]")  # no constant
INFINITY = re.compile(r"([+-]?)\\infty")


class Interval(NamedTuple):
    """Its ends, and whether these belong to it."""

    low: Any
    high: Any
    low_in: bool
    high_in: bool


def is_set(text: str) -> bool:
    """Whether a text is an inequality, a union or a membership, if it is mathematics at all."""
    return bool(RELATION.search(text) or UNION.search(text) or MEMBER.fullmatch(text))


def same_numbers(one: str, other: str) -> bool:
    """Whether two sets of real numbers are equal.

    Raises:
        Unsure: one is no such set.
    """
    (name, left), (other_name, right) = _read(one), _read(other)
    if name is not None and other_name is not None and name != other_name:
        raise Unsure
    left, right = _merged(left), _merged(right)
    return len(left) == len(right) and all(map(_same, left, right))


def _read(text: str) -> tuple[str | None, list[Interval]]:
    """The number's name where the text gives it one, and the intervals in which it is."""
    text = text.replace("\\left", "").replace("\\right", "")
    name = None
    if member := MEMBER.fullmatch(text):
        name, text = member[1], member[2]
    sides = [part.strip() for part in RELATION.split(text)]
    if len(sides) == 1:
        return name, [_interval(part.strip()) for part in UNION.split(text)]
    if name is not None:
        raise Unsure
    return _inequality(sides)


def _interval(text: str) -> Interval:
    ends = text[1:-1].split(",")
    if len(ends) != 2 or text[0] not in "([" or text[-1] not in ")]":
        raise Unsure
    return Interval(_end(ends[0]), _end(ends[1]), text[0] == "[", text[-1] == "]")


def _inequality(sides: list[str]) -> tuple[str, list[Interval]]:
    """From constants, a name and the relations between them."""
    downwards = [">" in sign or "≥" in sign or sign.startswith("\\g") for sign in sides[1::2]]
    if len(set(downwards)) > 1 or len(sides) > 5:
        raise Unsure
    if downwards[0]:
        sides = sides[::-1]
    places = [place for place in range(0, len(sides), 2) if NAME.fullmatch(sides[place])]
    if len(places) != 1 or (len(sides) == 5 and places != [2]):
        raise Unsure
    place = places[0]
    low, low_in = (_end(sides[place - 2]), _belongs(sides[place - 1])) if place else (-_infinity(), False)
    last = place == len(sides) - 1
    high, high_in = (_infinity(), False) if last else (_end(sides[place + 2]), _belongs(sides[place + 1]))
    return sides[place], [Interval(low, high, low_in, high_in)]


def _belongs(sign: str) -> bool:
    return sign not in ("<", ">", "\\lt", "\\gt")


def _end(text: str) -> Any:
    text = text.strip()
    if infinite := INFINITY.fullmatch(text.replace(" ", "")):
        return -_infinity() if infinite[1] == "-" else _infinity()
    node = read_expression(text)
    if not names_in(node) <= {"pi", "e"}:
        raise Unsure
    return complex_value(node, {}, many_digits(), principal=False)


def _infinity() -> Any:
    return many_digits().inf


def _merged(intervals: list[Interval]) -> list[Interval]:
    """The same numbers in intervals that neither overlap nor touch, from left to right."""
    if any(not interval.low < interval.high for interval in intervals):
        raise Unsure
    merged: list[Interval] = []
    for low, high, low_in, high_in in sorted(intervals):
        last = merged[-1] if merged else None
        if last is None or low > last.high or (low == last.high and not (low_in or last.high_in)):
            merged.append(Interval(low, high, low_in, high_in))
        else:
            high_in = any(one_in for end, one_in in ((high, high_in), last[1::2]) if end == max(high, last.high))
            low_in = last.low_in or (low == last.low and low_in)
            merged[-1] = Interval(last.low, max(high, last.high), low_in, high_in)
    return merged


def _same(one: Interval, other: Interval) -> bool:
    mp = many_digits()
    ends = ((one.low, other.low), (one.high, other.high))
    near = all(a == b or (mp.isfinite(a) and mp.isfinite(b) and close(a, b, mp.mpf)) for a, b in ends)
    return near and one[2:] == other[2:]
