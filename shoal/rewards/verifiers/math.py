"""Verifiers for mathematical answers: numbers and text compared here, expressions by math-verify and sympy."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from shoal.rewards.answers.extract import last_answer, last_boxed, minerva_answer
from shoal.rewards.answers.notation import one_notation
from shoal.rewards.answers.quick_equality import quickly_equal
from shoal.rewards.answers.thinking import answering_part
from shoal.rewards.answers.units import split_unit
from shoal.rewards.base import Submission, verifier

LONGEST_ANSWER = 2000  # characters; anything longer is no answer, and is not given to sympy
LONGEST_QUICK = 300  # characters; what is longer is read in a process that can be killed
LARGEST_EXPONENT = 400  # of ten, in scientific notation

SPACES = re.compile(r"(?<!\\)\\[,;:! ]|\\q?quad\b|~|\\(?:left|right|displaystyle|bigl?|bigr?|Bigl?|Bigr?)(?![A-Za-z])")
WRAPPERS = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree|°")
THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?")
ASSIGNMENT = re.compile(r"(?:[A-Za-z]|\\[a-z]+)(?:_\{?\w+\}?)?(?:\([a-z](?:,[a-z])*\))?(?:=|\\in(?![a-z]))([^=]+)")
THIN_SPACE = re.compile(r"(?<=\d)\\[,!](?=\d{3}(?!\d))")
DISPLAYED = re.compile(r"\\[dtc](frac|binom)")
FRACTION = re.compile(r"\\frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}")
NUMBER_SPACES = re.compile(r"\s+(?!\d)|(?<=[-+*^{])\s+")
NAMED_NUMBER = re.compile(r"([A-Za-z])\s*=\s*([^=]+)")
IN_BASE = re.compile(r"(\d[\dA-Z]*)\s*_\s*(?:\{\s*)?(?:\\text\s*\{)?(\d+)[}\s]*")
JOINED = re.compile(r"\s*,?\s*\b(?:and|or)\b\s*", re.IGNORECASE)
CHOICE = re.compile(r"\(?([A-Za-z])\)?[.:]?")
PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}\s+[A-Za-z]{2,}")  # two words in a row: no expression
WORDS = re.compile(r"[A-Za-z][A-Za-z'\- ]*")
NUMBER = re.compile(
    r"""
    (?P<sign>[+-]*)
    (?:
        (?P<decimal>\d+\.?\d*|\.\d+)(?:\\(?:overline|bar)\{(?P<repeated>\d+)\})?
        (?:(?:\\times|\\cdot|[*×·])10(?:\^|\*\*)\{?(?P<power>[+-]?\d+)\}? | [eE](?P<short>[+-]?\d+))?
      | (?:(?P<whole>\d+)\+?)? \\frac\{(?P<frac_sign>-?)(?P<over>\d+)\}\{(?P<under>\d+)\}
      | (?:(?P<spaced>\d+)\ +)? (?P<plain_over>\d+)\s*/\s*(?P<plain_under>\d+)
    )
    (?P<percent>%)?
    """,
    re.VERBOSE,
)
# Words that stand after a number are its unit, unless they are mathematics.
UNIT = re.compile(
    r"(?P<number>.*?[\d})%])(?:\s+|(?=[a-z]{2}))(?!(?:pi|e|i|sqrt|sin|cos|tan|log|ln|exp|and|or|to|x|y|z)\b)"
    r"(?:[a-zA-Z]{2,}|[a-zA-Z]+(?=/)|(?<=/)[a-zA-Z]+)(?:\^\{?[23]\}?)?(?:[\s./]+(?:[a-zA-Z]+)(?:\^\{?[23]\}?)?)*[.\s]*"
)
LATEX_UNIT = re.compile(
    r"(?P<number>.*[\d})%])\s*\\(?:text|mathrm|mbox|textrm)\s*\{\s*(?![ei]\s*\})([A-Za-z.$/ ]+)\s*\}(?:\^\{?\d\}?)?"
)

Number = tuple[Fraction, bool]
"""A value, and whether it was written as a percentage."""


def quick_math(submission: Submission) -> float | None:
    """What `math` gives, where that takes no sympy; None otherwise."""
    return _quick_score(submission.ground_truth, last_answer(submission.text))


def quick_strict_math(submission: Submission) -> float | None:
    """What `strict_math` gives, where that takes no sympy; None otherwise."""
    return _quick_score(submission.ground_truth, _strict_answer(submission.text))


def math_key(submission: Submission) -> tuple[str, ...]:
    """All that the score of `math` depends on."""
    return last_answer(submission.text), *ground_truths(submission.ground_truth)


def strict_math_key(submission: Submission) -> tuple[str, ...]:
    """All that the score of `strict_math` depends on."""
    return _strict_answer(submission.text), *ground_truths(submission.ground_truth)


@verifier("math", needs={"math_verify": "math"}, quick=quick_math, key=math_key)
def math(submission: Submission) -> float:
    r"""1 where the last `\boxed`, or else the last answer, equals the ground truth as mathematics, and 0 otherwise.

    The ground truth is an answer, a solution with a `\boxed`, or a list of answers of which any will do.
    """
    answer = last_answer(submission.text)
    return float(any(same_answer(truth, answer) for truth in ground_truths(submission.ground_truth)))


@verifier("strict_math", needs={"math_verify": "math"}, quick=quick_strict_math, key=strict_math_key)
def strict_math(submission: Submission) -> float:
    """As `math`, but the answer must stand in "Final Answer: The final answer is X. I hope it is correct.", or be the
    whole completion (open-instruct's rule)."""
    answer = _strict_answer(submission.text)
    return float(any(same_answer(truth, answer) for truth in ground_truths(submission.ground_truth)))


def _strict_answer(text: str) -> str:
    text = answering_part(text)
    answer = minerva_answer(text)
    return text if answer is None else answer


def ground_truths(given: Any) -> list[str]:
    r"""The right answers as text, out of their `\boxed` where they have one."""
    return [_unboxed(str(answer)) for answer in (given if isinstance(given, list) else [given])]


@lru_cache(maxsize=4096)
def _unboxed(answer: str) -> str:
    boxed = last_boxed(answer)
    return answer if boxed is None else boxed


def same_answer(truth: str, answer: str) -> bool:
    """Whether two answers are equal: as text, as numbers (exactly), else as expressions."""
    settled = settle(truth, answer)
    if isinstance(settled, bool):
        return settled
    from shoal.rewards.answers.symbolic import same_expression  # noqa: PLC0415 - math-verify is an optional package

    return same_expression(*settled)


def _quick_score(ground_truth: Any, answer: str) -> float | None:
    if len(answer) > LONGEST_QUICK:
        return None
    settled = [settle(truth, answer) for truth in ground_truths(ground_truth)]
    if True in settled:
        return 1.0
    return 0.0 if all(verdict is False for verdict in settled) else None


@lru_cache(maxsize=8192)  # a group's completions share their truth, and often their answer
def settle(truth: str, answer: str) -> bool | tuple[str, str]:
    """Whether two answers are equal, or the two expressions of which only sympy can tell."""
    if not answer.strip() or len(answer) > LONGEST_ANSWER:
        return False
    (truth, wanted, unit), (answer, other_unit) = _read_truth(truth), clean(answer)
    if unit and other_unit and unit != other_unit:
        return False
    if _squeezed(truth) == _squeezed(answer):
        return True
    if wanted is None and (named := NAMED_NUMBER.fullmatch(truth)) and _names_only(answer, named[1]):
        wanted = number(named[2])
        truth = truth if wanted is None else named[2]
    if (base := IN_BASE.fullmatch(truth)) and (verdict := _equal_in_base(base, answer)) is not None:
        return verdict
    if wanted is not None:
        got = number(_value_part(answer))
        if got is not None:
            return _equal_numbers(wanted, got)
    if (letter := CHOICE.fullmatch(truth)) and truth.isupper():
        return bool((chosen := CHOICE.match(answer)) and _is_choice(answer) and chosen[1] == letter[1])
    if WORDS.fullmatch(truth) and len(truth) > 1:
        return _folded(truth) == _folded(answer)
    answer = _value_part(answer) if wanted is not None else answer
    if PROSE.search(answer):
        return False
    got = number(answer) if wanted is None else None
    quick = quickly_equal(_as_fraction(wanted, truth), _as_fraction(got, answer))
    if quick is None and (base := IN_BASE.fullmatch(answer)) and quickly_equal(truth, base[1]) is False:
        return False
    if quick is None and (base := IN_BASE.fullmatch(truth)) and quickly_equal(base[1], answer) is False:
        return False
    return (truth, answer) if quick is None else quick


def _as_fraction(value: Number | None, text: str) -> str:
    r"""As `quick_equality` reads it, which knows no "3 \frac{1}{2}"; a percentage is left as it is."""
    if value is None or value[1]:
        return text
    return f"\\frac{{{value[0].numerator}}}{{{value[0].denominator}}}"


@lru_cache(maxsize=4096)
def _read_truth(truth: str) -> tuple[str, Number | None, str | None]:
    """A ground truth and its unit as `clean` gives them, and between them the number that it is."""
    truth, unit = clean(truth)
    return truth, number(truth), unit


def clean(text: str) -> tuple[str, str | None]:
    """An answer in one notation and without what has no meaning, and its unit: delimiters, spacing commands, fonts,
    degrees, a final stop."""
    text = text.strip().replace("\u2212", "-").replace("\u00a0", " ").replace("{,}", ",")
    boxed = last_boxed(text)
    if boxed is not None:
        text = boxed
    for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("`", "`")):
        if len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing):
            text = text[len(opening) : -len(closing)].strip()
    text, unit = split_unit(SPACES.sub(" ", THIN_SPACE.sub("", text)).strip())
    if unit is None and DEGREES.search(text):
        unit = "degree"
    text = text.replace("\\$", "").replace("$", "").replace("\\%", "%").replace("\\{,\\}", ",")
    text = DEGREES.sub("", text)
    if "\\" in text:
        text = DISPLAYED.sub(r"\\\1", text)
    if found := LATEX_UNIT.fullmatch(text.strip().rstrip(".")):
        text = found["number"]
    text = one_notation(WRAPPERS.sub(r" \1 ", text)).strip()
    text = FRACTION.sub(r"\\frac{\1}{\2}", text)
    text = text.rstrip(".").strip() if not re.fullmatch(r"\d+\.", text) else text
    if THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    return " ".join(text.split()), unit


def number(text: str) -> Number | None:
    """The number that the whole text is, exactly; None where it is something else."""
    match = NUMBER.fullmatch(NUMBER_SPACES.sub("", text))
    if match is None:
        return None
    if match["decimal"]:
        power = int(match["power"] or match["short"] or 0)
        if abs(power) > LARGEST_EXPONENT:
            return None
        value = Fraction(match["decimal"].rstrip("."))
        if match["repeated"]:
            places = len(match["decimal"].partition(".")[2])
            value += Fraction(int(match["repeated"]), (10 ** len(match["repeated"]) - 1) * 10**places)
        value *= Fraction(10) ** power
    else:
        whole, over = match["whole"] or match["spaced"] or 0, match["over"] or match["plain_over"]
        under = int(match["under"] or match["plain_under"])
        if under == 0:
            return None
        value = int(whole) + Fraction(int(over), under) * (-1 if match["frac_sign"] else 1)
    negative = match["sign"].count("-") % 2 == 1
    return (-value if negative else value), match["percent"] is not None


def _equal_numbers(wanted: Number, got: Number) -> bool:
    """Equal values; 50 % is 50, and is 0.5 too."""
    (value, percent), (answer, answer_percent) = wanted, got
    if value == answer:
        return True
    if percent == answer_percent:
        return False
    return value == answer * 100 if percent else value * 100 == answer


def _value_part(answer: str) -> str:
    """An answer without the variable that it is given to and without its unit: "x = 5 cm" is 5."""
    assigned = ASSIGNMENT.fullmatch(answer.replace(" ", "")) and answer.partition("=")[2].strip()
    answer = assigned or answer
    unit = UNIT.fullmatch(answer)
    answer = unit["number"] if unit else answer
    return answer.replace(",", "") if THOUSANDS.fullmatch(answer) else answer


def _names_only(answer: str, name: str) -> bool:
    """Whether an answer gives its value to nothing or to this name."""
    start, equals, _ = answer.partition("=")
    return not equals or start.strip() == name


def _equal_in_base(truth: re.Match[str], answer: str) -> bool | None:
    """Whether a number has the digits of one that is written with its base, and no other base; None for no number."""
    if got := IN_BASE.fullmatch(answer):
        return truth[1] == got[1] and truth[2] == got[2]
    return answer == truth[1] if answer.isdigit() else None


def _is_choice(answer: str) -> bool:
    """Whether an answer names one of several choices: "(B)", "B." or "B) 12", not "Both"."""
    return re.match(r"\(?[A-Za-z](?:\)|[.:]|\s|$)", answer) is not None


def _squeezed(text: str) -> str:
    return text.replace(" ", "")


def _folded(text: str) -> str:
    return " ".join(JOINED.sub(" ", text).lower().split())
