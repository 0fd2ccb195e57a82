"""Verifiers for answers that are numbers, in the manner of GSM8K."""

from __future__ import annotations

import re
from fractions import Fraction

from shoal.rewards.answers import last_boxed
from shoal.rewards.base import Submission, verifier
from shoal.rewards.strings import tagged_answer
from shoal.rewards.thinking import answering_part

ANSWER_MARK = "####"
ANSWER_WORDS = re.compile(r"answer\s+is", re.IGNORECASE)
LONGEST_NUMBER = 60  # characters; no answer is longer, and Python refuses to read very long ones

OPERAND_WINDOW = 8  # characters in which an operand before a sign is looked for

# A number may follow a currency sign, not a letter ("step3", "m2"). Its sign is a sign where it does not follow
# something that it would be taken off from ("5-2"); that is decided in `_is_sign`.
NUMBER = re.compile(
    r"""
    (?P<sign>[+\-−])?
    (?:[$€£¥₹]\s?)?
    (?P<inner>[+\-−])?
    (?<![A-Za-z_\d]) (?<!\d\.)
    (?:
        (?:(?P<whole>\d+)\s+)? (?P<over>\d+)/(?P<under>\d+)(?![\d/])
      | (?P<number>\d{1,3}(?:[,\u00a0\u202f]\d{3})+(?!\d)(?:\.\d+)? | \d+(?:\.\d+)? | (?<![A-Za-z.])\.\d+)
    )
    (?P<percent>\s?%)?
    """,
    re.VERBOSE,
)
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
    truth = last_number(str(submission.ground_truth))
    text = answering_part(submission.text)
    span = answer_span(text)
    if truth is None:
        wanted = " ".join(str(submission.ground_truth).lower().split())
        return float(" ".join((span or "").lower().split()) == wanted)
    if span is not None:
        return float(_equal(last_number(span), truth))
    parts = ANSWER_WORDS.split(text)
    after = _numbers(_without_latex(parts[-1])) if len(parts) > 1 else []
    return float(_equal(after[0] if after else last_number(text), truth))


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


Number = tuple[Fraction, bool]
"""A value, and whether it was written as a percentage."""


def last_number(text: str) -> Number | None:
    """The last number outside parentheses; the last one at all where there is none outside."""
    plain = _without_latex(text)
    numbers = _numbers(_without_parentheses(plain)) or _numbers(plain)
    return numbers[-1] if numbers else None


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


def _numbers(text: str) -> list[Number]:
    numbers = []
    for match in NUMBER.finditer(text):
        value = _value(match)
        if value is None:
            continue
        sign = match["inner"] or (match["sign"] if _is_sign(text, match.start()) else None)
        negative = sign not in (None, "+")
        numbers.append((-value if negative else value, match["percent"] is not None))
    return numbers


def _value(match: re.Match[str]) -> Fraction | None:
    if len(match.group()) > LONGEST_NUMBER:
        return None
    if match["number"]:
        return Fraction(re.sub("[,\u00a0\u202f]", "", match["number"]))
    over, under = int(match["over"]), int(match["under"])
    if under == 0:
        return None
    return int(match["whole"] or 0) + Fraction(over, under)


def _is_sign(text: str, position: int) -> bool:
    """Whether a + or - at `position` belongs to its number: it does not after a letter, nor after an operand."""
    before = text[max(0, position - OPERAND_WINDOW) : position]
    if before[-1:].isalnum():
        return False
    operand = before.rstrip()[-1:]
    return not (operand.isdigit() or operand in (")", "%"))


def _without_latex(text: str) -> str:
    """Numbers as they are written outside LaTeX: 1{,}000, 1\\,000, \\$18, 5\\%, \\frac{1}{2}; without exponents."""
    text = text.replace("{,}", ",").replace("\\$", "$").replace("\\%", "%")
    text = re.sub(r"(?<=\d)\\[,!;: ](?=\d{3})", ",", text)
    text = re.sub(r"(?<=\d)\s*\\[dt]?frac\{(\d+)\}\{(\d+)\}", r" \1/\2", text)  # 1\frac{1}{2} is 1 1/2
    text = re.sub(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}", r"\1/\2", text)
    return re.sub(r"\^(\{[^{}]*\}|[+\-]?\d+)", "", text)


def _without_parentheses(text: str) -> str:
    """The text outside round parentheses, also outside one that is never closed."""
    depth = 0
    kept = []
    for character in text:
        if character == "(":
            depth += 1
            kept.append(" ")
        elif character == ")":
            depth = max(0, depth - 1)
            kept.append(character)  # what follows may be taken off from what stood in them
        elif depth == 0:
            kept.append(character)
    return "".join(kept)
