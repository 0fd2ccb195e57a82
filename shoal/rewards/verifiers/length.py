"""Verifiers of a completion's length in tokens. The ground truth is a number of tokens."""

from __future__ import annotations

from shoal.rewards.base import Submission, verifier

SCALE = 32768


@verifier("max_length", bounded=True)
def max_length(submission: Submission, *, scale: int = SCALE) -> float:
    """1 at exactly the wanted length, less by 1 / `scale` for each token more or fewer, and never below 0."""
    return max(0.0, 1 - abs(submission.num_tokens - _wanted(submission)) / scale)


@verifier("up_to_max_length", bounded=True)
def up_to_max_length(submission: Submission, *, scale: int = SCALE) -> float:
    """1 up to the wanted length, less by 1 / `scale` for each token more, and never below 0."""
    return max(0.0, 1 - max(0.0, submission.num_tokens - _wanted(submission)) / scale)


def _wanted(submission: Submission) -> float:
    return float(submission.ground_truth)
