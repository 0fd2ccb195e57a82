"""Verifiers for instruction following: IFEval's checks, strict and loose, and TorchRL's reward made of both."""

from __future__ import annotations

import re
from ast import literal_eval
from collections.abc import Mapping
from json import JSONDecodeError, loads
from typing import Any

from shoal.rewards.answers.instructions import check_instruction, follows
from shoal.rewards.answers.thinking import after_thinking
from shoal.rewards.base import Submission, verifier

LONGEST_RESPONSE = 200_000  # characters; a longer response follows nothing
ID_KEYS = ("instruction_id_list", "instruction_id")
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
THINK = re.compile(r"<think>(.*?)</think>", re.DOTALL)
STRICT_ALL, STRICT_SHARE, LOOSE_ALL, LOOSE_SHARE = 0.4, 0.3, 0.2, 0.1
ONE_ANSWER, ONE_THINK = 0.1, 0.05


def check_rules(ground_truth: Any) -> None:
    """Raises ValueError where a ground truth has no instructions that can be checked."""
    try:
        asked = rules(ground_truth)
    except (SyntaxError, TypeError) as error:
        raise ValueError(f"not a ground truth of IFEval: {str(ground_truth)[:80]!r}") from error
    for rule in asked:
        check_instruction(*rule)


@verifier("ifeval", needs={"langdetect": "ifeval"}, check=check_rules)
def ifeval(submission: Submission, *, whole: bool = False) -> float:
    """The share of the instructions that the response follows; with `whole` 1 where it follows all, else 0.

    The ground truth has `instruction_id_list` and `kwargs`, as in google/IFEval. The response is what follows the
    thinking, without answer tags.
    """
    asked, response = rules(submission.ground_truth), _response(submission.text)
    if len(response) > LONGEST_RESPONSE:
        return 0.0
    return _score([follows(*rule, response) for rule in asked], whole)


@verifier("ifeval_loose", needs={"langdetect": "ifeval"}, check=check_rules)
def ifeval_loose(submission: Submission, *, whole: bool = False) -> float:
    """As `ifeval`, where it is enough that the response follows an instruction without its first line, its last line
    or both, or without asterisks."""
    asked, response = rules(submission.ground_truth), _response(submission.text)
    if len(response) > LONGEST_RESPONSE:
        return 0.0
    variants = loose_variants(response)
    return _score([_follows_any(rule, variants) for rule in asked], whole)


@verifier("ifeval_torchrl", needs={"langdetect": "ifeval"}, check=check_rules)
def ifeval_torchrl(submission: Submission) -> float:
    """TorchRL's reward for IFEval, between 0 and 1.15, over the first `<answer>` (nothing without one).

    0.4 where all instructions are followed strictly, 0.3 x their share, 0.2 and 0.1 the same loosely; 0.1 for exactly
    one answer block, 0.05 for exactly one think block.
    """
    # What never closes is left out, since a search from each of many opening tags to the end would take for ever.
    answers = ANSWER.findall(_until_last(submission.text, "</answer>"))
    response = answers[0] if answers else ""
    asked = rules(submission.ground_truth)
    if len(response) > LONGEST_RESPONSE:
        return 0.0
    variants = loose_variants(response)
    strict = [follows(*rule, response) for rule in asked]
    loose = [_follows_any(rule, variants) for rule in asked]
    return (
        STRICT_ALL * all(strict)
        + STRICT_SHARE * _score(strict, whole=False)
        + LOOSE_ALL * all(loose)
        + LOOSE_SHARE * _score(loose, whole=False)
        + ONE_ANSWER * (len(answers) == 1)
        + ONE_THINK * (len(THINK.findall(_until_last(submission.text, "</think>"))) == 1)
    )


Rule = tuple[str, Mapping[str, Any]]
"""An instruction's id and its arguments."""


def rules(ground_truth: Any) -> list[Rule]:
    """The instructions of a ground truth: a dict, a list with one, or either written as JSON or Python.

    Raises:
        ValueError: there are none, or ids and arguments differ in number.
    """
    given = _read(ground_truth)
    given = given[0] if isinstance(given, list) and given else given
    given = _read(given)
    key = next((key for key in ID_KEYS if isinstance(given, dict) and key in given), None)
    if key is None or not given[key]:
        raise ValueError(f"the ground truth names no instructions under {' or '.join(ID_KEYS)}")
    ids, arguments = given[key], given.get("kwargs") or [{}] * len(given[key])
    if len(ids) != len(arguments):
        raise ValueError(f"the ground truth has {len(ids)} instructions and {len(arguments)} sets of arguments")
    return [(name, row or {}) for name, row in zip(ids, arguments, strict=True)]


def loose_variants(response: str) -> list[str]:
    """The response, and without its first line, its last line, or both; each also without asterisks."""
    lines = response.split("\n")
    cut = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    return [text for variant in (response, *cut) for text in (variant, variant.replace("*", ""))]


def _follows_any(rule: Rule, variants: list[str]) -> bool:
    return any(follows(*rule, variant) for variant in variants)


def _score(followed: list[bool], whole: bool) -> float:
    return float(all(followed)) if whole else sum(followed) / len(followed)


def _until_last(text: str, mark: str) -> str:
    return text[: text.rfind(mark) + len(mark)] if mark in text else ""


def _response(text: str) -> str:
    after = after_thinking(text)
    return after.replace("<answer>", "").replace("</answer>", "").strip()


def _read(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return loads(value)
    except JSONDecodeError:
        return literal_eval(value)
