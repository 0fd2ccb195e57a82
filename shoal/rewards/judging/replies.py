"""Reading what a judge replied. Whatever cannot be read raises ValueError, and is asked for again."""

from __future__ import annotations

import json
from math import isfinite
from typing import Any

LONGEST_QUOTE = 120


def read_object(reply: str, key: str) -> dict[str, Any]:
    """The last JSON object in a reply that has `key`; text around it is passed over.

    Raises:
        ValueError: there is none.
    """
    decoder = json.JSONDecoder()
    found: dict[str, Any] | None = None
    start = reply.find("{")
    while start >= 0:
        end = start + 1
        try:
            value, end = decoder.raw_decode(reply, start)
        except (json.JSONDecodeError, RecursionError):
            value = None
        if isinstance(value, dict) and key in value:
            found = value
        start = reply.find("{", end)
    if found is None:
        raise ValueError(f"the reply has no JSON object with {key!r}: {reply[:LONGEST_QUOTE]!r}")
    return found


def read_mark(reply: str, lowest: float, highest: float) -> float:
    """The mark of `{"score": mark}`, from 0 (lowest) to 1 (highest).

    Raises:
        ValueError: there is none, or it is not between the two.
    """
    given = read_object(reply, "score")["score"]
    try:
        mark = float(given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the score {given!r} is no number") from error
    if isinstance(given, bool) or not isfinite(mark) or not lowest <= mark <= highest:
        raise ValueError(f"the score {given!r} is not between {lowest:g} and {highest:g}")
    return (mark - lowest) / (highest - lowest)


def read_winner(reply: str) -> float:
    """1 where `{"winner": "A"}`, 0 where it is B, a half where it is a tie.

    Raises:
        ValueError: it is none of these.
    """
    winner = str(read_object(reply, "winner")["winner"]).strip().lower()
    shares = {"a": 1.0, "b": 0.0, "tie": 0.5}
    if winner not in shares:
        raise ValueError(f"the winner {winner[:LONGEST_QUOTE]!r} is none of A, B and tie")
    return shares[winner]
