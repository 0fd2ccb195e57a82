"""The verifier that matches a regular expression."""

from __future__ import annotations

import re

from shoal.rewards.base import Submission, verifier
from shoal.rewards.text_match import truths
from shoal.rewards.thinking import answering_part


@verifier("regex")
def regex(submission: Submission, *, whole: bool = False) -> float:
    """1 where what follows the thinking has a match of the ground truth, or of one in a list, and 0 otherwise.

    With `whole` it must match from end to end. In the pattern `.` is any character but a line's end.
    """
    text = answering_part(submission.text)
    search = re.fullmatch if whole else re.search
    return float(any(search(pattern, text) for pattern in truths(submission.ground_truth)))
