"""Numbers as they are written in prose and in LaTeX."""

from __future__ import annotations

import re
from fractions import Fraction
from unicodedata import numeric

LONGEST_NUMBER = 60  # characters; no answer is longer, and Python refuses to read very long ones

LONGEST_POWER = 30  # digits, about
OPERAND_WINDOW = 8  # characters in which an operand before a sign is looked for

# A number may follow a currency sign, not a letter ("step3", "m2"). Its sign is a sign where it does not follow
# something that it would be taken off from ("5-2"); that is decided in `_is_sign`.
NUMBER = re.compile(
    r"""
    (?P<sign>[+\-−])?
    (?:[$€£¥₹]\s?)?
    (?P<inner>[+\-−])?
    (?<![A-Za-z_\d]) (?<!\d\.)
    (?:
        (?:(?P<whole>\d+)\s+)? (?P<over>\d+)/(?P<under>\d+)(?![\d/])
      | (?P<number>\d{1,3}(?:[,\u00a0\u202f]\d{3})+(?!\d)(?:\.\d+)? | \d+(?:\.\d+)? | (?<![A-Za-z.])\.\d+)
        (?:[eE](?P<power>[+\-−]?\d{1,3})(?![A-Za-z\d.]))?
    )
    (?P<percent>\s?(?:%|percent\b|per\ cent\b))?
    """,
    re.VERBOSE,
)
VULGAR = re.compile("[½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞⅐⅑⅒]")
POWER_OF_TEN = re.compile(
    r"(?<=\d)\s*(?:\\times|\\cdot|[×·*x])\s*10\s*(?:\^|\*\*)\s*(?:(?=\{)\{\s*)?([+\-−]?\d{1,3})(?!\d)\s*\}?"
)
POWER = re.compile(r"(?<![\w.,/})])(\d{1,9})\s*(?:\^|\*\*)\s*(?:\{\s*(\d{1,2})\s*\}|(\d{1,2})(?![\d.]))")
EXPONENT = re.compile(r"\^(\{[^{}]*\}|[+\-]?\d+)")
Number = tuple[Fraction, bool]
"""A value, and whether it was written as a percentage."""


def last_number(text: str) -> Number | None:
    """The last number outside parentheses; the last one at all where there is none outside."""
    plain = without_latex(text)
    found = _last(_without_parentheses(plain))
    return _last(plain) if found is None else found


def _last(text: str) -> Number | None:
    numbers = (_read(text, match) for match in reversed(list(NUMBER.finditer(text))))
    return next((number for number in numbers if number is not None), None)


def as_text(number: Number) -> str:
    """A number in one writing, as `math` reads it."""
    value, percent = number
    return f"{value}{'%' if percent else ''}"


def first_number(text: str) -> Number | None:
    """The first number."""
    plain = without_latex(text)
    numbers = (_read(plain, match) for match in NUMBER.finditer(plain))
    return next((number for number in numbers if number is not None), None)


def _read(text: str, match: re.Match[str]) -> Number | None:
    value = _value(match)
    if value is None:
        return None
    sign = match["inner"] or (match["sign"] if _is_sign(text, match.start()) else None)
    negative = sign not in (None, "+")
    return -value if negative else value, match["percent"] is not None


def _value(match: re.Match[str]) -> Fraction | None:
    if len(match.group()) > LONGEST_NUMBER:
        return None
    if match["number"]:
        value = Fraction(re.sub("[,\u00a0\u202f]", "", match["number"]))
        return value * Fraction(10) ** int(match["power"].replace("−", "-")) if match["power"] else value
    over, under = int(match["over"]), int(match["under"])
    if under == 0:
        return None
    return int(match["whole"] or 0) + Fraction(over, under)


def _is_sign(text: str, position: int) -> bool:
    """Whether a + or - at `position` belongs to its number: it does not after a letter, nor after an operand."""
    before = text[max(0, position - OPERAND_WINDOW) : position]
    if before[-1:].isalnum():
        return False
    operand = before.rstrip()[-1:]
    return not (operand.isdigit() or operand in (")", "%"))


def without_latex(text: str) -> str:
    """Numbers as they are written outside LaTeX: 1{,}000, 1\\,000, \\$18, 5\\%, \\frac{1}{2}; 1.8e1 for powers of ten,
    1/2 for the sign of a half, and without exponents of anything but a number."""
    text = text.replace("{,}", ",").replace("\\$", "$").replace("\\%", "%")
    text = re.sub(r"(?<=\d)\\[,!;: ](?=\d{3})", ",", text)
    text = re.sub(r"(?<=\d)\s*\\[dt]?frac\{(\d+)\}\{(\d+)\}", r" \1/\2", text)  # 1\frac{1}{2} is 1 1/2
    text = re.sub(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}", r"\1/\2", text)
    if not text.isascii():
        text = VULGAR.sub(lambda sign: f" {as_text((Fraction(numeric(sign[0])).limit_denominator(10), False))}", text)
    if "^" not in text and "**" not in text:
        return text
    text = POWER_OF_TEN.sub(r"e\1", text)
    return EXPONENT.sub("", POWER.sub(_powered, text))


def _powered(power: re.Match[str]) -> str:
    """The value of a small power of two whole numbers."""
    base, exponent = int(power[1]), int(power[2] or power[3])
    return str(base**exponent) if exponent * len(power[1]) <= LONGEST_POWER else power[0]


def _without_parentheses(text: str) -> str:
    """The text outside round parentheses, also outside one that is never closed."""
    depth = 0
    kept = []
    for character in text:
        if character == "(":
            depth += 1
            kept.append(" ")
        elif character == ")":
            depth = max(0, depth - 1)
            kept.append(character)  # what follows may be taken off from what stood in them
        elif depth == 0:
            kept.append(character)
    return "".join(kept)
