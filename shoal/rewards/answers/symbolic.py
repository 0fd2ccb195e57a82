"""Equality of expressions, by math-verify. May take for ever: only for worker processes that can be killed."""

from __future__ import annotations

import logging
import re
from functools import lru_cache

from math_verify import LatexExtractionConfig, parse, verify
from sympy import Expr
from sympy.core.evalf import PrecisionExhausted

# Says on every call that its timeout is off. It is: its alarm works in a main thread only, and our deadline holds.
logging.getLogger("math_verify").setLevel(logging.CRITICAL)

MOST_DIGITS = 6000  # in which a difference is looked for
NEAR = 1e-3  # beyond it numbers are not equal by rounding
DECIMAL = re.compile(r"(?<![\d.])(\d{0,15})\.(\d{1,15})(?![\d.])")
AND_OR = re.compile(r"(?:\s+|\s*,\s*)(?:and|or)\s+", re.IGNORECASE)


@lru_cache(maxsize=4096)  # a group's completions share their truth, and often their answer
def same_expression(truth: str, answer: str) -> bool:
    """Whether two LaTeX expressions, sets, intervals, equations or matrices are equal."""
    wanted, got = _parsed(truth), _parsed(answer)
    if not wanted or not got:
        return False
    return bool(verify(wanted, got, timeout_seconds=None)) and not _nearly_equal(wanted[0], got[0])


def _nearly_equal(one: object, other: object) -> bool:
    """Whether two constants differ, but by so little that math-verify, which rounds, takes them for equal."""
    if not isinstance(one, Expr) or not isinstance(other, Expr) or one.free_symbols or other.free_symbols:
        return False
    try:
        difference = abs((one - other).evalf(15, maxn=MOST_DIGITS, strict=True))
        size = abs(one.evalf(15, maxn=MOST_DIGITS, strict=True))
    except (PrecisionExhausted, TypeError, ValueError, NotImplementedError):
        return False  # no digit of it is known: it is 0
    return bool(0 < difference < max(NEAR * size, NEAR**3))


@lru_cache(maxsize=4096)
def _parsed(text: str) -> list[object]:
    """What math-verify reads in `text`; empty where it is not an expression."""
    latex = AND_OR.sub(", ", text).replace("%", "\\%").replace("\\varnothing", "\\emptyset")
    latex = DECIMAL.sub(_exactly, latex)
    found = parse(
        f"${latex}$",
        extraction_config=[LatexExtractionConfig()],
        fallback_mode="no_fallback",
        parsing_timeout=None,
    )
    return list(found)


def _exactly(decimal: re.Match[str]) -> str:
    """A decimal as a fraction: 0.5 is equal to 1/2 and 1.414 is not equal to the root of 2, with no rounding."""
    whole, places = decimal[1], decimal[2]
    return f"{{\\frac{{{int(whole + places)}}}{{{10 ** len(places)}}}}}"
