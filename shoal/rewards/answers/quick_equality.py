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
from itertools import combinations
from random import Random
from typing import Any

from shoal.rewards.answers.expression_values import (
    DIGITS,
    PRIME,
    close,
    complex_value,
    decimal_value,
    many_digits,
    modular_value,
    same_in_more_digits,
)
from shoal.rewards.answers.expressions import (
    CONSTANTS,
    WORD,
    Node,
    Unsure,
    degree,
    has_function,
    is_rational,
    names_in,
    read_expression,
)
from shoal.rewards.answers.intervals import INFINITY, is_set, same_numbers

POINTS = 2
MOST_COMPARED = 10  # members of a set with each other
LONGEST = 1000  # characters
ZERO = ("number", "0")
PLUS_MINUS = re.compile(r"\\pm(?![A-Za-z])|±")
MATRIX = re.compile(r"\\begin\{([pb]?matrix|array)\}(?:\{[lcr|]*\})?((?:(?!\\begin|\\end).)*)\\end\{\1\}", re.DOTALL)


def quickly_equal(truth: str, answer: str) -> bool | None:
    """Whether two LaTeX expressions are equal; None where that is left to sympy."""
    if max(len(truth), len(answer)) > LONGEST:
        return None
    try:
        if is_set(truth) or is_set(answer):
            return _same_sets(truth, answer)
        for read, equal, differ in KINDS:
            one, other = read(truth), read(answer)
            if one is not None and other is not None:
                return equal(one, other)
            if one is not None or other is not None:
                number = read_expression(answer if other is None else truth)
                return False if differ(one or other, number) else None
        for one, other in ((truth, answer), (answer, truth)):
            if WORD.fullmatch(other):
                return False if _lacks_letters(one, other) else None
        return _equal_expressions(read_expression(truth), read_expression(answer))
    except (Unsure, RecursionError, ArithmeticError):
        return None


def _lacks_letters(expression: str, word: str) -> bool:
    """Whether a word, were it a product of names, has one that an expression has not: "ellipse" is not x+1."""
    return not set(word) <= names_in(read_expression(expression))


def _same_sets(truth: str, answer: str) -> bool:
    """As `same_numbers`; a set is no number."""
    for text, other in ((truth, answer), (answer, truth)):
        if not is_set(other) and not _is_in_brackets(other):
            read_expression(other)
            same_numbers(text, text)  # raises where it is not understood
            return False
    return same_numbers(truth, answer)


def _is_in_brackets(text: str) -> bool:
    text = text.replace("\\left", "").replace("\\right", "").strip()
    return text[:1] in ("(", "[") and "," in text


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
    if kind in ("set", "<>"):
        kind, parts = "set", [one for part in parts for one in _both_signs(part)]
    return (kind, parts) if depth == 0 and len(parts) > 1 else None


def _both_signs(text: str) -> list[str]:
    r"""The two numbers that a \pm b is; a text without such a sign by itself."""
    if len(PLUS_MINUS.findall(text)) != 1:
        return [text]
    return [PLUS_MINUS.sub(sign, text) for sign in "+-"]


def _equal_members(many: Members, others: Members) -> bool | None:
    """Points and intervals member by member, sets in any order."""
    (kind, left), (other_kind, right) = many, others
    if kind != other_kind and "set" not in (kind, other_kind):
        return False  # an end belongs to the one interval and not to the other
    if len(left) != len(right):
        shorter, longer = sorted((left, right), key=len)
        apart = _are_distinct(longer) and all(_equal_member(one, one) for one in shorter)
        return False if apart else None  # {1,2,2} is {1,2}
    if kind != other_kind:
        return None
    if kind != "set":
        return _all_equal(left, right)
    table = [[_equal_member(one, other) for other in right] for one in left]
    if any(None in row or row.count(True) > 1 for row in table):
        return None  # members that are equal to each other
    return all(map(any, table)) and all(map(any, zip(*table, strict=True)))


def _are_distinct(members: list[str]) -> bool:
    return all(_equal_member(one, other) is False for one, other in combinations(members[:MOST_COMPARED], 2))


def _are_many(members: Members, number: Node) -> bool:
    """Whether a point, an interval or a set is seen to be no number."""
    return _equal_member(members[1][0], members[1][1]) is False


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


def _is_wide(matrix: list[list[str]], number: Node) -> bool:
    """Whether a matrix is no number."""
    return len(matrix) > 1 or len(matrix[0]) > 1


def _equation(text: str) -> Node | None:
    """The difference of an equation's sides; None for what is none."""
    sides = text.split("=")
    return ("-", *map(read_expression, sides)) if len(sides) == 2 else None


def _equal_equations(one: Node, other: Node) -> bool | None:
    """Equal where the differences are, whatever their sign, or, as polynomials of several names, proportional. Whether
    others are is left to sympy, but for those of lines and planes."""
    names = names_in(one) | names_in(other)
    degrees = {degree(one), degree(other)}
    if len(names) > 1 and not names & set(CONSTANTS) and None not in degrees:
        if _proportional(one, other, names):
            return True
        if degrees == {1}:
            return False
    return True if _equal_expressions(one, other) or _equal_expressions(("-", ZERO, one), other) else None


def _proportional(one: Node, other: Node, names: set[str]) -> bool:
    """As `_equal_modulo_prime`, but for a factor."""
    random = Random(20)
    points = [{name: random.randrange(1, PRIME) for name in sorted(names)} for _ in range(POINTS + 1)]
    (a, b), *others = [(modular_value(one, point), modular_value(other, point)) for point in points]
    return bool(a and b) and all((a * d - b * c) % PRIME == 0 for c, d in others)


def _is_on_no_side(equation: Node, expression: Node) -> bool:
    """Whether an expression is neither side of an equation; the right one may stand for a function's definition."""
    return not any(_equal_expressions(side, expression) for side in equation[1:])


Kind = tuple[Callable[[str], Any], Callable[[Any, Any], bool | None], Callable[[Any, Node], bool]]
"""Reads a text (None: it is of another kind); whether two such are equal; whether one is seen to be no expression."""
KINDS: tuple[Kind, ...] = (
    (_matrix, _equal_matrices, _is_wide),
    (_equation, _equal_equations, _is_on_no_side),
    (_members, _equal_members, _are_many),
)


def _equal_expressions(left: Node, right: Node) -> bool:
    names = names_in(left) | names_in(right)
    if not names & {"e", "i"}:
        if is_rational(left) and is_rational(right):
            return _equal_modulo_prime(left, right, names)
        if names <= {"pi"} and not has_function(left) and not has_function(right):
            with localcontext() as context:
                context.prec = DIGITS
                same = close(decimal_value(left), decimal_value(right), Decimal)
            return same and same_in_more_digits(left, right)
    variables = sorted(names.difference(CONSTANTS))
    return _equal_at_points(left, right, variables) and (bool(variables) or same_in_more_digits(left, right))


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
