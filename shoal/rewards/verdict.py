"""Calling a verifier: a finite score, or a reason why there is none."""

from __future__ import annotations

import time
from dataclasses import dataclass
from logging import getLogger
from math import isfinite
from numbers import Real

from shoal.rewards.base import Submission, Verifier, VerifierEntry

logger = getLogger(__name__)

LONGEST_REASON = 300


@dataclass(frozen=True)
class Verdict:
    """`score` is None where it could not be computed; `reason` then says why. `seconds` is the verifier's own time."""

    score: float | None
    seconds: float
    reason: str = ""


def judge(function: Verifier, submission: Submission) -> Verdict:
    """Calls a verifier in this thread. Whatever it raises makes the score missing."""
    start = time.perf_counter()
    try:
        score = function(submission, **submission.options)
    except Exception as error:  # noqa: BLE001 - foreign code; what it raised is kept and reported
        reason = f"{type(error).__name__}: {error}"[:LONGEST_REASON]
        return Verdict(None, time.perf_counter() - start, reason)
    return as_verdict(score, time.perf_counter() - start)


def as_verdict(score: object, seconds: float) -> Verdict:
    """What a verifier gave, as a verdict: a finite number, or a reason."""
    if not isinstance(score, Real):
        return Verdict(None, seconds, f"gave {type(score).__name__}, not a number")
    if not isfinite(score):
        return Verdict(None, seconds, f"gave {score}")
    return Verdict(float(score), seconds)


def judge_here(entry: VerifierEntry, submission: Submission) -> Verdict | None:
    """The verdict of a verifier that can be called in this process; None where a worker process must be asked."""
    if entry.bounded:
        return judge(entry.function, submission)
    if entry.quick is None:
        return None
    start = time.perf_counter()
    try:
        score = entry.quick(submission, **submission.options)
    except Exception as error:  # noqa: BLE001 - the verifier itself will say what is wrong
        logger.debug("verifier %s is asked in a worker: %s", entry.name, error)
        return None
    return None if score is None else Verdict(score, time.perf_counter() - start)
