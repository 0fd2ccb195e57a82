"""Verifiers that a random model meets now and then, so that every step has a signal; and broken ones."""

import hashlib
import time

from shoal.rewards.base import Submission, verifier


@verifier("starts_with_a_digit", bounded=True)
def starts_with_a_digit(submission: Submission) -> float:
    """1 for about one random completion in five, and for the right answer, which the start-up check tries."""
    return float(submission.text[:1].isdigit() or f"<answer>{submission.ground_truth}</answer>" in submission.text)


@verifier("slowly", bounded=True)
def slowly(submission: Submission) -> float:
    """Draws a step out, for a test that wants to hit it."""
    time.sleep(0.004)
    return starts_with_a_digit(submission)


@verifier("sometimes_raises", bounded=True)
def sometimes_raises(submission: Submission) -> float:
    """Raises for about one completion in four, decided by its text."""
    if hashlib.sha256(submission.text.encode()).digest()[0] < 64:
        raise ValueError("no verdict on this one")
    return starts_with_a_digit(submission)


@verifier("always_zero", bounded=True)
def always_zero(submission: Submission) -> float:
    return 0.0


@verifier("always_raises", bounded=True)
def always_raises(submission: Submission) -> float:
    raise RuntimeError("the judge is out")


@verifier("in_a_worker")
def in_a_worker(submission: Submission) -> float:
    """The first, but judged in a worker process."""
    return starts_with_a_digit(submission)
