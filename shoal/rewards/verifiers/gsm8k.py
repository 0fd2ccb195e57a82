"""Verifiers for answers that are numbers, in the manner of GSM8K."""

from __future__ import annotations

import re

from shoal.rewards.answers.extract import last_boxed
from shoal.rewards.answers.number_text import Number, first_number, last_number
from shoal.rewards.answers.thinking import answering_part
from shoal.rewards.base import Submission, verifier
from shoal.rewards.verifiers.strings import tagged_answer

ANSWER_MARK = "####"
ANSWER_WORDS = re.compile(r"answer\s+is", re.IGNORECASE)
DECIMAL_COMMA = re.compile(r"(?<![\d,.])(-?\d+),(\d{1,2})(?![\d,])")  # as the truth must be written for it to be one
COMPATIBLE_NUMBER = re.compile(r"[-+]?(?:\d*\.\d+|\d+)")


@verifier("gsm8k", bounded=True)
def gsm8k(submission: Submission, *, compat: bool = False) -> float:
    """1 where the answer equals the ground truth as a number (3.50 is 3.5, $1,000 is 1000), and 0 otherwise.

    The answer stands after the thinking: in the last `<answer>` tag, else in the last `\\boxed`, else after the last
    `####`, else it is the first number after the last "answer is", else the last number outside parentheses. With
    `compat` it is what open-instruct's verifier takes: see `gsm8k_open_instruct`.
    """
    if compat:
        return gsm8k_open_instruct(submission)
    written, text = str(submission.ground_truth).strip(), answering_part(submission.text)
    if DECIMAL_COMMA.fullmatch(written):
        written, text = DECIMAL_COMMA.sub(r"\1.\2", written), DECIMAL_COMMA.sub(r"\1.\2", text)
    truth = last_number(written)
    span = answer_span(text)
    if truth is None:
        wanted = " ".join(written.lower().split())
        return float(" ".join((span or "").lower().split()) == wanted)
    if span is not None and span == written:
        return 1.0
    if span is not None:
        return float(_equal(last_number(span), truth))
    parts = ANSWER_WORDS.split(text)
    after = first_number(parts[-1]) if len(parts) > 1 else None
    return float(_equal(last_number(text) if after is None else after, truth))


@verifier("gsm8k_open_instruct", bounded=True)
def gsm8k_open_instruct(submission: Submission) -> float:
    """The score that open-instruct's GSM8K verifier gives, for comparing with its results; use `gsm8k` to train.

    The last number of the text, as written, must be the ground truth, letter for letter: "$18.00" is not 18, and
    "5-2" ends in -2. Without a number the whole text is compared. Letters are compared without case.
    """
    text = re.sub(r"(\d),(\d)", r"\1\2", submission.text)
    numbers = COMPATIBLE_NUMBER.findall(text)
    answer = numbers[-1] if numbers else text
    return float(answer.lower() == str(submission.ground_truth).lower())


def answer_span(text: str) -> str | None:
    """The marked answer: the last `<answer>`, else the last `\\boxed`, else the line after the last `####`."""
    tagged = tagged_answer(text)
    if tagged is not None:
        return tagged
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed
    _, mark, after = text.rpartition(ANSWER_MARK)
    return (after.strip().splitlines() or [""])[0] if mark else None


def _equal(answer: Number | None, truth: Number) -> bool:
    """Equal values; 50 % is 50, and is 0.5 too."""
    if answer is None:
        return False
    (value, percent), (wanted, wanted_percent) = answer, truth
    if value == wanted:
        return True
    if percent == wanted_percent:
        return False
    return value == wanted * 100 if percent else value * 100 == wanted
