"""Verifiers that compare words: equal but for case, punctuation and articles, or the overlap of their words."""

from __future__ import annotations

import re
from collections import Counter
from string import punctuation
from typing import Any

from shoal.rewards.answers.thinking import answering_part
from shoal.rewards.base import Submission, verifier
from shoal.rewards.verifiers.strings import tagged_answer

ARTICLES = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", punctuation)


@verifier("string_match", bounded=True)
def string_match(submission: Submission, *, tags: bool = False) -> float:
    """1 where the answer has the words of the ground truth, or of one in a list of them, and 0 otherwise.

    The answer is the last `<answer>` after the thinking, and without one (not allowed with `tags`) all that follows it.
    """
    text = answering_part(submission.text)
    answer = tagged_answer(text)
    if answer is None:
        if tags:
            return 0.0
        answer = text
    return float(any(words(answer) == words(truth) for truth in truths(submission.ground_truth)))


@verifier("f1", bounded=True)
def f1(submission: Submission) -> float:
    """F1 of the words in the answer and in the ground truth; the best over a list of them.

    The answer is the last `<answer>` after the thinking, else all that follows it. Words count as often as they occur.
    """
    text = answering_part(submission.text)
    answer = tagged_answer(text)
    answered = words(text if answer is None else answer)
    return max(_f1(answered, words(truth)) for truth in truths(submission.ground_truth))


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation and articles (as SQuAD's evaluation compares them)."""
    return ARTICLES.sub(" ", text.lower().translate(NO_PUNCTUATION)).split()


def truths(given: Any) -> list[str]:
    """The right answers as text.

    Raises:
        ValueError: there are none.
    """
    answers = given if isinstance(given, list) else [given]
    if not answers or None in answers:
        raise ValueError("the row has no ground truth")
    return [str(answer) for answer in answers]


def _f1(answered: list[str], wanted: list[str]) -> float:
    """Harmonic mean of precision and recall; 1 where both are empty."""
    if not answered or not wanted:
        return float(answered == wanted)
    shared = (Counter(answered) & Counter(wanted)).total()
    return 2 * shared / (len(answered) + len(wanted))
