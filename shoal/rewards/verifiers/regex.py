"""The verifier that matches a regular expression."""

from __future__ import annotations

import re
from typing import Any

from shoal.rewards.answers.thinking import answering_part
from shoal.rewards.base import Submission, verifier
from shoal.rewards.verifiers.text_match import truths

LONGEST_TEXT = 100_000  # characters; a longer one has no match


def check_patterns(ground_truth: Any) -> None:
    """Raises ValueError where a ground truth is no regular expression or list of some."""
    for pattern in truths(ground_truth):
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from error


@verifier("regex", check=check_patterns)
def regex(submission: Submission, *, whole: bool = False) -> float:
    """1 where what follows the thinking has a match of the ground truth, or of one in a list, and 0 otherwise;
    a text of more than 100,000 characters has none.

    With `whole` it must match from end to end. In the pattern `.` is any character but a line's end.
    """
    text = answering_part(submission.text)
    patterns = truths(submission.ground_truth)
    if len(text) > LONGEST_TEXT:
        return 0.0
    search = re.fullmatch if whole else re.search
    return float(any(search(pattern, text) for pattern in patterns))
