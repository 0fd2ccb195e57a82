"""Values of expressions: modulo a prime, in decimals, and as complex numbers of many digits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import cache
from math import factorial
from operator import add, mul, sub, truediv
from random import Random
from typing import Any

from shoal.rewards.answers.expressions import Node, Unsure, linear, whole_number

PRIME = 2**61 - 1
DIGITS = 60
MORE_DIGITS = 600
LARGEST, SMALLEST = 10**12, 1e-30  # beyond them too few digits would be left
LARGEST_EXPONENT = 1000
AGREE, TINY = 1e-40, 1e-30
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {"+": add, "-": sub, "*": mul, "/": truediv, "^": pow}
MPMATH_NAMES = {"arcsin": "asin", "arccos": "acos", "arctan": "atan"}


def modular_value(node: Node, point: Mapping[str, int]) -> int:
    """The value of a rational expression modulo the prime."""
    operation = node[0]
    if operation == "number":
        whole, _, places = node[1].partition(".")
        return int((whole + places) or 0) * pow(10, -len(places), PRIME) % PRIME
    if operation == "name":
        return point[node[1]]
    if operation == "!":
        return _modular_factorial(node[1], point)
    if operation == "binom":
        return _modular_binomial(node[1], node[2], point)
    left = modular_value(node[1], point)
    if operation == "^":
        power = whole_number(node[2])
        if power is None or (left == 0 and power <= 0):
            raise Unsure
        return pow(left, power, PRIME)
    right = modular_value(node[2], point)
    if operation == "/":
        if right == 0:
            raise Unsure
        return left * pow(right, -1, PRIME) % PRIME
    return {"+": left + right, "-": left - right, "*": left * right}[operation] % PRIME


def _modular_factorial(node: Node, point: Mapping[str, int]) -> int:
    """Of a sum X + c of names and a number: X! (X + 1) ... (X + c). X! is algebraically independent of the names and of
    the factorials of other sums, so any number does for it."""
    form = linear(node) or {}
    constant = form.pop("", 0)
    if not form:
        return _factorial_modulo_prime(constant)
    base = sum(value * point[name] for name, value in form.items())
    value = Random(f"{sorted(form.items())} {base}").randrange(1, PRIME)
    product = 1
    for factor in range(min(constant, 0) + 1, max(constant, 0) + 1):
        product = product * (base + factor) % PRIME
    if constant >= 0:
        return value * product % PRIME
    if product == 0:
        raise Unsure
    return value * pow(product, -1, PRIME) % PRIME


@cache
def _factorial_modulo_prime(number: int) -> int:
    return factorial(number) % PRIME


def _modular_binomial(of: Node, number: Node, point: Mapping[str, int]) -> int:
    count = whole_number(number)
    if count is None:
        below = _modular_factorial(number, point) * _modular_factorial(("-", of, number), point)
        return _modular_factorial(of, point) * pow(below, -1, PRIME) % PRIME
    value, product = modular_value(of, point), 1
    for factor in range(count):
        product = product * (value - factor) % PRIME
    return product * pow(factorial(count), -1, PRIME) % PRIME


def decimal_value(node: Node) -> Decimal:
    """The value of a constant made of numbers, pi, powers and square roots, in the digits of the decimal context."""
    operation = node[0]
    if operation == "number":
        value = Decimal(node[1])
    elif operation == "name":
        value = PI
    elif operation == "sqrt":
        value = _positive(decimal_value(node[1])).sqrt()
    else:
        left, right = decimal_value(node[1]), decimal_value(node[2])
        if operation == "^":
            whole = right == right.to_integral_value()
            value = left ** int(right) if whole and abs(right) < 100 else _positive(left) ** right
        elif operation == "/":
            if abs(right) < SMALLEST:
                raise Unsure
            value = left / right
        else:
            value = {"+": left + right, "-": left - right, "*": left * right}[operation]
    if abs(value) > LARGEST:
        raise Unsure
    return value


def _positive(value: Decimal) -> Decimal:
    if value < 0:
        raise Unsure
    return value


def complex_value(node: Node, point: Mapping[str, Any], mp: Any, *, principal: bool) -> Any:
    """The value of any expression as a number of `mp`, an mpmath context, which sets the digits.

    Roots, powers and logarithms of anything but a positive number have several values: with `principal` the principal
    one is taken, without it such an expression is left to sympy.
    """
    operation = node[0]
    if operation == "number":
        return mp.mpf(node[1])
    if operation == "name":
        constants = {"pi": mp.pi, "e": mp.e, "i": mp.mpc(0, 1)}
        return +constants[node[1]] if node[1] in constants else point[node[1]]
    first, *others = (complex_value(part, point, mp, principal=principal) for part in node[1:])
    single = operation in ("+", "-", "*", "/", "sin", "cos", "tan", "cot", "sec", "csc", "exp", "arctan", "!", "binom")
    if operation == "^":
        single = whole_number(node[2]) is not None or node[1] == ("name", "e")
    if not (single or principal or _in_domain(operation, [first, *others], mp)):
        raise Unsure
    large = [first, *others] if operation in ("!", "binom") else others or [first]
    if operation in ("^", "root", "exp", "!", "binom") and max(map(abs, large)) > LARGEST_EXPONENT:
        raise Unsure
    if operation == "/" and abs(others[0]) < SMALLEST:
        raise Unsure
    value = _value(operation, first, others, mp)
    if not mp.isfinite(value) or abs(value) > LARGEST:
        raise Unsure
    return value


def _in_domain(operation: str, values: Sequence[Any], mp: Any) -> bool:
    """Whether a function has one value there."""
    if any(mp.im(value) for value in values):
        return False
    if operation in ("arcsin", "arccos"):
        return bool(abs(values[0]) <= 1)
    least = 0 if operation in ("sqrt", "root") else SMALLEST
    return all(value >= least for value in (values if operation == "log" else values[:1]))


def _value(operation: str, first: Any, others: Sequence[Any], mp: Any) -> Any:
    if operation in ("+", "-", "*", "/", "^"):
        return ARITHMETIC[operation](first, others[0])
    if operation == "log":
        base, scale = mp.ln(first), mp.ln(others[0])
        if abs(base) < SMALLEST:
            raise Unsure
        return scale / base
    if operation == "root":
        return first ** (1 / others[0])
    if operation in ("!", "binom"):
        try:
            return mp.factorial(first) if operation == "!" else mp.binomial(first, others[0])
        except ValueError as error:  # at the poles of the gamma function
            raise Unsure from error
    return getattr(mp, MPMATH_NAMES.get(operation, operation))(first)


def close(one: Any, other: Any, number: Callable[[float], Any]) -> bool:
    """Equal but for rounding. Differences between numbers that are next to nothing may be rounding."""
    size = max(abs(one), abs(other))
    if 0 < size < number(TINY):
        raise Unsure
    return bool(abs(one - other) <= number(AGREE) * (1 + size))


def same_in_more_digits(left: Node, right: Node) -> bool:
    """Whether two constants that agree in `DIGITS` digits do so in `MORE_DIGITS`: 1 - e^{-200} is not 1."""
    mp = many_digits(MORE_DIGITS)
    one, other = (complex_value(node, {}, mp, principal=False) for node in (left, right))
    return bool(abs(one - other) <= mp.mpf(10) ** (DIGITS - MORE_DIGITS) * (1 + abs(one)))


@cache
def many_digits(digits: int = DIGITS) -> Any:
    """An mpmath context of so many digits, which has its own numbers and functions."""
    from mpmath import MPContext  # noqa: PLC0415 - comes with math-verify, which is an optional package

    context = MPContext()
    context.dps = digits
    return context
