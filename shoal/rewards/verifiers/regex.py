"""The verifier that matches a regular expression."""

from __future__ import annotations

import re

from shoal.rewards.answers.extract import after_thinking
from shoal.rewards.base import Submission, verifier
from shoal.rewards.verifiers.text_match import truths


@verifier("regex")
def regex(submission: Submission, *, whole: bool = False) -> float:
    """1 where what follows the thinking has a match of the ground truth, or of one in a list, and 0 otherwise.

    With `whole` it must match from end to end. In the pattern `.` is any character but a line's end.
    """
    text = after_thinking(submission.text)
    search = re.fullmatch if whole else re.search
    return float(any(search(pattern, text) for pattern in truths(submission.ground_truth)))
