"""Verifiers that compare text."""

from __future__ import annotations

import re

from shoal.rewards.base import Submission, verifier

ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def tagged_answer(text: str) -> str | None:
    """What stands in the last `<answer>...</answer>`, without surrounding space; None where there is none."""
    answers = ANSWER.findall(text)
    return answers[-1].strip() if answers else None


@verifier("exact_answer", bounded=True)
def exact_answer(submission: Submission) -> float:
    """1 where the last `<answer>` is the ground truth, letter for letter, and 0 otherwise."""
    return float(tagged_answer(submission.text) == str(submission.ground_truth))
