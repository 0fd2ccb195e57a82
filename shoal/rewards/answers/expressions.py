"""Reading simple LaTeX expressions in microseconds.

Handles numbers, one-letter names, pi, + - * / ^, fractions, brackets, roots, factorials, binomial coefficients, and the
elementary functions of an argument that cannot be read in two ways. For anything else it raises `Unsure`: nothing is
guessed.
"""

from __future__ import annotations

import re

MOST_DIGITS = 400  # of a number
LARGEST_POWER = 10**9
LARGEST_FACTORIAL = 1000  # of names and a number, of which the product is taken
LARGEST_CONSTANT_FACTORIAL = 10_000
FUNCTIONS = ("arcsin", "arccos", "arctan", "sin", "cos", "tan", "cot", "sec", "csc", "exp", "ln", "log")
TOKEN = re.compile(
    rf"\s*(?:(\d+(?:\.\d+)?|\.\d+)|\\(frac|sqrt|binom|cdot|times|div|pi|left|right|{'|'.join(FUNCTIONS)})(?![A-Za-z])"
    r"|(\*\*|.))",
    re.DOTALL,
)
# "sin x" without its backslash is no product of three names.
WORD = re.compile(r"(?<![\\A-Za-z])(?:[A-Za-z]{3,}|ln|lg|pi|or|if|is|in|to|no|Re|Im)(?![A-Za-z])")
BRACKETS = {"(": ")", "{": "}"}
PRODUCTS = ("*", "/", "cdot", "times", "div")
CONSTANTS = ("pi", "e", "i")


class Unsure(Exception):
    """An expression that is left to sympy."""


Node = tuple
"""(operation, operands...): number, name, +, -, *, /, ^, sqrt, root (of a degree, which is a number), log (of a base),
! (a factorial), binom, or a function's name."""


def read_expression(text: str) -> Node:
    """The whole text as one expression.

    Raises:
        Unsure: it is none, or can be read in two ways.
        RecursionError: its brackets are nested too deeply.
    """
    if WORD.search(text):
        raise Unsure
    return _Parser(text).whole()


def names_in(node: Node) -> set[str]:
    """The names in an expression, constants among them."""
    if node[0] in ("number", "name"):
        return {node[1]} if node[0] == "name" else set()
    return set().union(*(names_in(part) for part in node[1:]))


def is_rational(node: Node) -> bool:
    """Whether an expression is made of sums, products, quotients and whole powers alone, and of factorials and binomial
    coefficients of sums of names and whole numbers."""
    if node[0] in ("number", "name"):
        return True
    if node[0] == "!":
        return _has_factorial(node[1])
    if node[0] == "binom":
        least = whole_number(node[2])
        if least is not None:
            return 0 <= least <= LARGEST_FACTORIAL and is_rational(node[1])
        return all(map(_has_factorial, (node[1], node[2], ("-", node[1], node[2]))))
    if node[0] == "^":
        return whole_number(node[2]) is not None and is_rational(node[1])
    return node[0] in ("+", "-", "*", "/") and all(map(is_rational, node[1:]))


def _has_factorial(node: Node) -> bool:
    """Whether there is a value of its factorial that is a known multiple of one that goes by its names alone."""
    form = linear(node)
    if form is None:
        return False
    constant = form.get("", 0)
    if not form.keys() - {""}:
        return 0 <= constant <= LARGEST_CONSTANT_FACTORIAL
    return abs(constant) <= LARGEST_FACTORIAL and (constant >= 0 or len(form) > 1)


def linear(node: Node) -> dict[str, int] | None:
    """The coefficients of a sum of names, "" for the constant; None for what is not seen to be one of whole numbers."""
    if node[0] == "name":
        return {node[1]: 1}
    if node[0] == "number":
        return {"": int(node[1])} if node[1].isdigit() else None
    parts = [linear(part) for part in node[1:]] if node[0] in ("+", "-", "*") else [None]
    if any(part is None for part in parts):
        return None
    one, other = (part or {} for part in parts)
    if node[0] == "*":
        one, other = (one, other) if set(one) <= {""} else (other, one)
        total = {name: one.get("", 0) * value for name, value in other.items()} if set(one) <= {""} else None
        return total and {name: value for name, value in total.items() if value or not name}
    sign = 1 if node[0] == "+" else -1
    total = {name: one.get(name, 0) + sign * other.get(name, 0) for name in one.keys() | other.keys()}
    return {name: value for name, value in total.items() if value or not name}


def degree(node: Node) -> int | None:
    """That of a polynomial in its names, no lower; None for what is not seen to be one."""
    if node[0] in ("number", "name"):
        return int(node[0] == "name")
    if node[0] not in ("+", "-", "*", "/", "^"):
        return None
    left, right = degree(node[1]), degree(node[2])
    if left is None or right is None:
        return None
    if node[0] in ("+", "-"):
        return max(left, right)
    if node[0] == "*":
        return left + right
    power = 1 if node[0] == "/" else whole_number(node[2])
    return left * power if right == 0 and power is not None and power >= 0 else None


def has_function(node: Node) -> bool:
    """Whether there is anything but arithmetic, powers and square roots in an expression."""
    if node[0] in ("number", "name"):
        return False
    return node[0] in (*FUNCTIONS, "root", "!", "binom") or any(map(has_function, node[1:]))


def whole_number(node: Node) -> int | None:
    """The value of an exponent that is a whole number and not large; None for another."""
    if node[0] == "number":
        return int(node[1]) if node[1].isdigit() and int(node[1]) <= LARGEST_POWER else None
    if node[0] == "-" and node[1] == ("number", "0"):
        value = whole_number(node[2])
        return None if value is None else -value
    return None


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

    def _number(self) -> str | None:
        """The next token where it is a number."""
        return self.tokens[self.position][0] if self.position < len(self.tokens) else None

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
            before, sign = sign, self._take(*PRODUCTS)
            if sign is None and not self._atom_follows():
                return node
            if sign is None and before in ("/", "div"):
                raise Unsure  # 1/2x is one half of x to some and one over 2x to others
            node = ("/" if sign in ("/", "div") else "*", node, self._power())

    def _atom_follows(self) -> bool:
        if self.position == len(self.tokens):
            return False
        number, command, sign = self.tokens[self.position]
        if number is not None and self.tokens[self.position - 1][2] == "!":
            return True
        if number is not None or (command == "frac" and self.tokens[self.position - 1][0] is not None):
            raise Unsure  # "x 2", and a mixed number
        return command in ("frac", "sqrt", "binom", "pi", *FUNCTIONS) or (
            sign is not None and (sign in BRACKETS or _is_name(sign))
        )

    def _power(self) -> Node:
        if self._peek() in FUNCTIONS:
            return self._function()
        bracket = self._peek() == "("
        node = self._atom()
        if self._take("!"):
            if not (bracket or node[0] == "name" or whole_number(node) is not None) or self._peek() in ("!", "^", "**"):
                raise Unsure  # a double factorial, or a power of which it is hard to say what is raised
            return ("!", node)
        if self._take("^", "**"):
            exponent = self._exponent()
            if self._peek() in ("^", "**", "!"):
                raise Unsure
            node = ("^", node, exponent)
        return node

    def _exponent(self) -> Node:
        number = self._number()
        if number is not None and len(number) > 1:
            raise Unsure  # x^23 is x^{2}3 in LaTeX and x^{23} elsewhere
        return self._atom()

    def _function(self) -> Node:
        r"""A function with its argument: \sin x, \sin 2\pi x, \sin^2(x), \log_2 8."""
        name = self._take(*FUNCTIONS)
        base, power = None, None
        if name == "log":
            if self._take("_") is None:
                raise Unsure  # natural to some, of base 10 to others
            base = self._exponent()
        if self._take("^"):
            power = self._exponent()
            if (whole_number(power) or 0) < 1:
                raise Unsure  # \sin^{-1} x is the arc to some and one over the sine to others
        argument = self._argument()
        node = ("log", base, argument) if base is not None else (name, argument)
        return node if power is None else ("^", node, power)

    def _argument(self) -> Node:
        """In brackets, or a fraction or root, or a number, pi and a name in this order, each of which may be absent."""
        if self._peek() in BRACKETS or self._peek() in ("frac", "sqrt"):
            node = self._atom()
            ends: tuple[str, ...] = ("^", "**")
        else:
            parts = []
            if self._number() is not None:
                parts.append(self._atom())
            if self._peek() == "pi":
                parts.append(self._atom())
            if (sign := self._peek()) is not None and _is_name(sign):
                parts.append(self._atom())
            if not parts:
                raise Unsure
            node = parts[0]
            for part in parts[1:]:
                node = ("*", node, part)
            ends = ("^", "**", "!", *PRODUCTS)
        if self._peek() in ends or (self._peek() not in FUNCTIONS and self._atom_follows()):
            raise Unsure  # does it belong to the argument?
        return node

    def _atom(self) -> Node:
        if self.position == len(self.tokens):
            raise Unsure
        number, command, sign = self.tokens[self.position]
        self.position += 1
        if number is not None:
            if len(number) > MOST_DIGITS:
                raise Unsure
            return ("number", number)
        if command in ("frac", "binom"):
            return ("/" if command == "frac" else "binom", self._group(), self._group())
        if command == "sqrt":
            return self._root()
        if command == "pi" or (sign is not None and _is_name(sign)):
            return ("name", command or sign)
        if sign in BRACKETS:
            node = self._sum()
            if self._take(BRACKETS[sign]) is None:
                raise Unsure
            return node
        raise Unsure

    def _root(self) -> Node:
        if (digit := self._number()) is not None and len(digit) == 1:
            node = ("sqrt", self._atom())
            if self._peek() in ("^", "**") or self._atom_follows():
                raise Unsure  # LaTeX's root ends here, its writer's may not
            return node
        if self._take("[") is None:
            return ("sqrt", self._group())
        degree = self._atom()
        if not 2 <= (whole_number(degree) or 0) <= 100 or self._take("]") is None:
            raise Unsure
        return ("root", self._group(), degree)

    def _group(self) -> Node:
        if self._peek() != "{":
            raise Unsure
        return self._atom()


def _is_name(sign: str) -> bool:
    """A letter that is a name, Euler's number or the imaginary unit. E and j are these to some."""
    return sign.isascii() and sign.isalpha() and sign not in "jE"
