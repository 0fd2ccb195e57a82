"""Equality of simple expressions in microseconds, where math-verify and sympy take milliseconds.

Handles numbers, one-letter variables, pi, + - * / ^, fractions, brackets, roots of constants, and points, intervals,
sets and lists of these; anything else is left to sympy. Rational expressions are compared at random points modulo a
large prime: by the lemma of Schwartz and Zippel two different ones agree with a probability of their degree over the
prime. Constants with roots are compared in 60 digits. Nothing is expanded, so nothing takes long.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal, localcontext
from random import Random

PRIME = 2**61 - 1
POINTS = 2
LARGEST_POWER = 10_000
DIGITS, AGREE = 60, Decimal("1e-40")
LARGEST_CONSTANT = Decimal("1e12")
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
TOKEN = re.compile(
    r"\s*(?:(\d+(?:\.\d+)?|\.\d+)|\\(frac|sqrt|cdot|times|div|pi|left|right)(?![A-Za-z])|(\*\*|.))", re.DOTALL
)
BRACKETS = {"(": ")", "{": "}"}


class Unsure(Exception):
    """An expression that is left to sympy."""


Node = tuple  # (operation, operands...): number, name, +, -, *, /, ^, sqrt


def quickly_equal(truth: str, answer: str) -> bool | None:
    """Whether two LaTeX expressions are equal; None where that is left to sympy."""
    many, others = _members(truth), _members(answer)
    if many and others:
        return _equal_members(many, others)
    try:
        left, right = _Parser(truth).whole(), _Parser(answer).whole()
        names = _names(left) | _names(right)
        if _has_root(left) or _has_root(right):
            return _equal_constants(left, right) if names <= {"pi"} else None
        return _equal_at_points(left, right, names)
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
        verdicts = [quickly_equal(one, other) for one, other in zip(left, right, strict=True)]
        return None if None in verdicts else all(verdicts)
    table = [[quickly_equal(one, other) for other in right] for one in left]
    if any(None in row or row.count(True) > 1 for row in table):
        return None  # members that are equal to each other
    return all(map(any, table)) and all(map(any, zip(*table, strict=True)))


def _equal_at_points(left: Node, right: Node, names: set[str]) -> bool:
    random = Random(20)  # the same points every time, so that equal answers earn equal rewards
    for _ in range(POINTS):
        point = {name: random.randrange(1, PRIME) for name in sorted(names)}
        if _modular(left, point) != _modular(right, point):
            return False
    return True


def _equal_constants(left: Node, right: Node) -> bool:
    with localcontext() as context:
        context.prec = DIGITS
        one, other = _decimal(left), _decimal(right)
        return abs(one - other) <= AGREE * (1 + abs(one))


class _Parser:
    """Recursive descent: a sum of products, a product (its sign may be left out) of powers, a power of an atom."""

    def __init__(self, text: str) -> None:
        self.tokens = [match.groups() for match in TOKEN.finditer(text.strip())]
        self.tokens = [token for token in self.tokens if token[1] not in ("left", "right")]
        self.position = 0

    def whole(self) -> Node:
        node = self._sum()
        if self.position < len(self.tokens):
            raise Unsure
        return node

    def _peek(self) -> str | None:
        """The next sign or command; None at a number and at the end."""
        if self.position == len(self.tokens):
            return None
        return self.tokens[self.position][1] or self.tokens[self.position][2]

    def _take(self, *wanted: str) -> str | None:
        found = self._peek()
        if found in wanted:
            self.position += 1
            return found
        return None

    def _sum(self) -> Node:
        negative = self._take("+", "-") == "-"
        node = self._product()
        node = ("-", ("number", "0"), node) if negative else node
        while (sign := self._take("+", "-")) is not None:
            node = (sign, node, self._product())
        return node

    def _product(self) -> Node:
        node, sign = self._power(), None
        while True:
            before, sign = sign, self._take("*", "/", "cdot", "times", "div")
            if sign is None and not self._atom_follows():
                return node
            if sign is None and before in ("/", "div"):
                raise Unsure  # 1/2x is one half of x to some and one over 2x to others
            node = ("/" if sign in ("/", "div") else "*", node, self._power())

    def _atom_follows(self) -> bool:
        if self.position == len(self.tokens):
            return False
        number, command, sign = self.tokens[self.position]
        if number is not None or (command == "frac" and self._after_number()):
            raise Unsure  # "x 2", and a mixed number
        return command in ("frac", "sqrt", "pi") or (sign is not None and (sign in BRACKETS or _is_name(sign)))

    def _after_number(self) -> bool:
        return self.tokens[self.position - 1][0] is not None

    def _power(self) -> Node:
        node = self._atom()
        if self._take("^", "**"):
            exponent = self._exponent()
            if self._peek() in ("^", "**"):
                raise Unsure
            node = ("^", node, exponent)
        return node

    def _exponent(self) -> Node:
        if self.position < len(self.tokens):
            number = self.tokens[self.position][0]
            if number is not None and len(number) > 1:
                raise Unsure  # x^23 is x^{2}3 in LaTeX and x^{23} elsewhere
        return self._atom()

    def _atom(self) -> Node:
        if self.position == len(self.tokens):
            raise Unsure
        number, command, sign = self.tokens[self.position]
        self.position += 1
        if number is not None:
            return ("number", number)
        if command == "frac":
            return ("/", self._group(), self._group())
        if command == "sqrt":
            return ("sqrt", self._group())
        if command == "pi" or (sign is not None and _is_name(sign)):
            return ("name", command or sign)
        if sign in BRACKETS:
            node = self._sum()
            if self._take(BRACKETS[sign]) is None:
                raise Unsure
            return node
        raise Unsure

    def _group(self) -> Node:
        if self._peek() != "{":
            raise Unsure
        return self._atom()


def _is_name(sign: str) -> bool:
    """A variable: a letter that is not the imaginary unit or Euler's number, which sympy knows more of."""
    return sign.isascii() and sign.isalpha() and sign not in "ijeE"


def _names(node: Node) -> set[str]:
    if node[0] in ("number", "name"):
        return {node[1]} if node[0] == "name" else set()
    return set().union(*(_names(part) for part in node[1:]))


def _has_root(node: Node) -> bool:
    if node[0] in ("number", "name"):
        return False
    if node[0] == "sqrt" or (node[0] == "^" and _integer(node[2]) is None):
        return True
    return any(_has_root(part) for part in node[1:])


def _integer(node: Node) -> int | None:
    """The value of an exponent that is a whole number; None for another."""
    if node[0] == "number":
        return int(node[1]) if node[1].isdigit() and int(node[1]) <= LARGEST_POWER else None
    if node[0] == "-" and node[1] == ("number", "0"):
        value = _integer(node[2])
        return None if value is None else -value
    return None


def _modular(node: Node, point: Mapping[str, int]) -> int:
    """The value modulo the prime."""
    operation = node[0]
    if operation == "number":
        whole, _, places = node[1].partition(".")
        return int((whole + places) or 0) * pow(10, -len(places), PRIME) % PRIME
    if operation == "name":
        return point[node[1]]
    left = _modular(node[1], point)
    if operation == "^":
        power = _integer(node[2])
        if power is None or (left == 0 and power <= 0):
            raise Unsure
        return pow(left, power, PRIME)
    right = _modular(node[2], point)
    if operation == "/":
        if right == 0:
            raise Unsure
        return left * pow(right, -1, PRIME) % PRIME
    return {"+": left + right, "-": left - right, "*": left * right}[operation] % PRIME


def _decimal(node: Node) -> Decimal:
    """The value of a constant, where no step is so large that digits would be lost."""
    operation = node[0]
    if operation == "number":
        value = Decimal(node[1])
    elif operation == "name":
        value = PI
    elif operation == "sqrt":
        value = _positive(_decimal(node[1])).sqrt()
    else:
        left, right = _decimal(node[1]), _decimal(node[2])
        if operation == "^":
            whole = right == right.to_integral_value()
            value = left ** int(right) if whole and abs(right) < 100 else _positive(left) ** right
        elif operation == "/":
            value = left / right
        else:
            value = {"+": left + right, "-": left - right, "*": left * right}[operation]
    if abs(value) > LARGEST_CONSTANT:
        raise Unsure
    return value


def _positive(value: Decimal) -> Decimal:
    if value < 0:
        raise Unsure
    return value
