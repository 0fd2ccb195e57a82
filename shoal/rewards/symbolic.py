"""Equality of expressions, by math-verify. May take for ever: only for worker processes that can be killed."""

from __future__ import annotations

import logging
import re

from math_verify import LatexExtractionConfig, parse, verify

# Says on every call that its timeout is off. It is: its alarm works in a main thread only, and our deadline holds.
logging.getLogger("math_verify").setLevel(logging.CRITICAL)

AND_OR = re.compile(r"(?:\s+|\s*,\s*)(?:and|or)\s+", re.IGNORECASE)


def same_expression(truth: str, answer: str) -> bool:
    """Whether two LaTeX expressions, sets, intervals, equations or matrices are equal."""
    wanted, got = _parsed(truth), _parsed(answer)
    if not wanted or not got:
        return False
    return bool(verify(wanted, got, float_rounding=9, timeout_seconds=None))


def _parsed(text: str) -> list[object]:
    """What math-verify reads in `text`; empty where it is not an expression."""
    latex = AND_OR.sub(", ", text).replace("%", "\\%")
    found = parse(
        f"${latex}$",
        extraction_config=[LatexExtractionConfig()],
        fallback_mode="no_fallback",
        parsing_timeout=None,
    )
    return list(found)
