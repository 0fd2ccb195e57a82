"""Equality of simple expressions in microseconds, where math-verify and sympy take milliseconds.

Handles what `expressions` reads, and points, sets, lists, matrices and equations of it, and what `intervals` reads;
anything else is left to sympy. Rational expressions are compared at random points modulo a large prime: by the lemma of
Schwartz and Zippel two different ones agree with a probability of their degree over the prime. All others are compared
in 60 digits, at random points where they have names: they are different where they differ at positive numbers, at which
roots and logarithms have one value, and equal where they agree at a negative and at a complex number too. Nothing is
expanded, so nothing takes long.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal, localcontext
from random import Random
from typing import Any

from shoal.rewards.expression_values import (
    DIGITS,
    PRIME,
    close,
    complex_value,
    decimal_value,
    many_digits,
    modular_value,
)
from shoal.rewards.expressions import CONSTANTS, Node, Unsure, has_function, is_rational, names_in, read_expression
from shoal.rewards.intervals import INFINITY, is_set, same_numbers

POINTS = 2
LONGEST = 1000  # characters
ZERO = ("number", "0")
MATRIX = re.compile(r"\\begin\{([pb]?matrix|array)\}(?:\{[lcr|]*\})?((?:(?!\\begin|\\end).)*)\\end\{\1\}", re.DOTALL)


def quickly_equal(truth: str, answer: str) -> bool | None:
    """Whether two LaTeX expressions are equal; None where that is left to sympy."""
    if max(len(truth), len(answer)) > LONGEST:
        return None
    try:
        if is_set(truth) or is_set(answer):
            return same_numbers(truth, answer)
        for read, equal in KINDS:
            one, other = read(truth), read(answer)
            if one is not None and other is not None:
                return equal(one, other)
        return _equal_expressions(read_expression(truth), read_expression(answer))
    except (Unsure, RecursionError, ArithmeticError):
        return None


Members = tuple[str, list[str]]
"""The brackets of a point or interval, or "set" for sets and bare lists; and what stands between the commas."""


def _members(text: str) -> Members | None:
    """The members of a text with commas; None for another, and where brackets do not fit."""
    text = text.replace("\\left", "").replace("\\right", "").replace("\\{", "<").replace("\\}", ">").strip()
    enclosed = text[:1] in tuple("([<") and text[-1:] in tuple(")]>")
    kind = text[0] + text[-1] if enclosed else "set"
    parts, depth = [""], 0
    for character in text[1:-1] if enclosed else text:
        depth += (character in "([{<") - (character in ")]}>")
        if depth < 0:
            return None
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    parts = [part.replace("<", "\\{").replace(">", "\\}").strip() for part in parts]
    return ("set" if kind == "<>" else kind, parts) if depth == 0 and len(parts) > 1 else None


def _equal_members(many: Members, others: Members) -> bool | None:
    """Points and intervals member by member, sets in any order."""
    (kind, left), (other_kind, right) = many, others
    if kind != other_kind and "set" not in (kind, other_kind):
        return False  # an end belongs to the one interval and not to the other
    if kind != other_kind or len(left) != len(right):
        return None
    if kind != "set":
        return _all_equal(left, right)
    table = [[_equal_member(one, other) for other in right] for one in left]
    if any(None in row or row.count(True) > 1 for row in table):
        return None  # members that are equal to each other
    return all(map(any, table)) and all(map(any, zip(*table, strict=True)))


def _all_equal(left: list[str], right: list[str]) -> bool | None:
    verdicts = [_equal_member(one, other) for one, other in zip(left, right, strict=True)]
    return False if False in verdicts else None if None in verdicts else True


def _equal_member(one: str, other: str) -> bool | None:
    """As `quickly_equal`; infinity is equal to itself alone."""
    infinite = [INFINITY.fullmatch(text.replace(" ", "")) for text in (one, other)]
    if all(infinite):
        return one.startswith("-") == other.startswith("-")
    if any(infinite):
        number = other if infinite[0] else one
        return None if quickly_equal(number, number) is None else False
    return quickly_equal(one, other)


def _matrix(text: str) -> list[list[str]] | None:
    """The cells of a matrix, row by row; None for what is none."""
    match = MATRIX.fullmatch(text.strip())
    if match is None:
        return None
    rows = [row.strip() for row in match[2].split("\\\\")]
    return [[cell.strip() for cell in row.split("&")] for row in (rows[:-1] if not rows[-1] else rows)]


def _equal_matrices(one: list[list[str]], other: list[list[str]]) -> bool | None:
    if [len(row) for row in one] != [len(row) for row in other]:
        return False
    return _all_equal([cell for row in one for cell in row], [cell for row in other for cell in row])


def _equation(text: str) -> Node | None:
    """The difference of an equation's sides; None for what is none."""
    sides = text.split("=")
    return ("-", *map(read_expression, sides)) if len(sides) == 2 else None


def _equal_equations(one: Node, other: Node) -> bool | None:
    """Equal where the differences are, whatever their sign; whether others are is left to sympy."""
    return True if _equal_expressions(one, other) or _equal_expressions(("-", ZERO, one), other) else None


KINDS: tuple[tuple[Callable[[str], Any], Callable[[Any, Any], bool | None]], ...] = (
    (_matrix, _equal_matrices),
    (_equation, _equal_equations),
    (_members, _equal_members),
)


def _equal_expressions(left: Node, right: Node) -> bool:
    names = names_in(left) | names_in(right)
    if not names & {"e", "i"}:
        if is_rational(left) and is_rational(right):
            return _equal_modulo_prime(left, right, names)
        if names <= {"pi"} and not has_function(left) and not has_function(right):
            with localcontext() as context:
                context.prec = DIGITS
                return close(decimal_value(left), decimal_value(right), Decimal)
    return _equal_at_points(left, right, sorted(names.difference(CONSTANTS)))


def _equal_modulo_prime(left: Node, right: Node, names: set[str]) -> bool:
    random = Random(20)  # the same points every time, so that equal answers earn equal rewards
    for _ in range(POINTS):
        point = {name: random.randrange(1, PRIME) for name in sorted(names)}
        if modular_value(left, point) != modular_value(right, point):
            return False
    return True


def _equal_at_points(left: Node, right: Node, names: list[str]) -> bool:
    mp = many_digits()
    random = Random(20)

    def agree(sign: Any, principal: bool) -> bool:
        point = {name: sign * mp.mpf(random.randrange(10**8, 25 * 10**8)) / 10**9 for name in names}
        one, other = (complex_value(node, point, mp, principal=principal) for node in (left, right))
        return close(one, other, mp.mpf)

    if not agree(1, principal=False):
        return False
    if names and not (
        agree(1, principal=False) and agree(-1, principal=True) and agree(mp.mpc(1, 1 / 64), principal=True)
    ):
        raise Unsure  # equal to those who take the names for positive
    return True
