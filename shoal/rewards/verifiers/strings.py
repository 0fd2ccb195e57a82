"""Verifiers that compare text."""

from __future__ import annotations

from shoal.rewards.answers.thinking import answering_part
from shoal.rewards.base import Submission, verifier

OPENING, CLOSING = "<answer>", "</answer>"


def tagged_answer(text: str) -> str | None:
    """What stands in the last `<answer>...</answer>`, without surrounding space; None where there is none.

    In time linear in the text: a verifier that runs without a deadline may not search again from every tag.
    """
    start = text.rfind(OPENING, 0, max(0, text.rfind(CLOSING)))
    if start < 0:
        return None
    start += len(OPENING)
    return text[start : text.index(CLOSING, start)].strip()


@verifier("exact_answer", bounded=True)
def exact_answer(submission: Submission) -> float:
    """1 where the last `<answer>` after the thinking is the ground truth, letter for letter, and 0 otherwise."""
    return float(tagged_answer(answering_part(submission.text)) == str(submission.ground_truth))
