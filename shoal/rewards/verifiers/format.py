"""The verifier of a completion's form: think and answer tags, or a pattern of the user's."""

from __future__ import annotations

import re

from shoal.rewards.base import Submission, verifier

THINK_ANSWER = "think_answer"
ANSWER_AFTER_THINK = "answer_after_think"
TAGS = re.compile(r"<(/?)(think|answer)>")
IN_ORDER = [("", "think"), ("/", "think"), ("", "answer"), ("/", "answer")]


@verifier("format")
def format_reward(submission: Submission, *, pattern: str = THINK_ANSWER) -> float:
    """1 where the completion has the format, and 0 otherwise.

    `pattern` is `think_answer`: one <think> block, then one <answer> block that is not empty, and nothing but space
    around them (the opening <think> may stand in the prompt); `answer_after_think`: somewhere `</think>` followed,
    after space alone, by an <answer> block; or a regular expression (DOTALL) that must match the whole completion.
    """
    if pattern == THINK_ANSWER:
        return float(_think_answer(submission.text))
    if pattern == ANSWER_AFTER_THINK:
        return float(_answer_after_think(submission.text))
    return float(re.fullmatch(pattern, submission.text.strip(), re.DOTALL) is not None)


def _think_answer(text: str) -> bool:
    if not text.lstrip().startswith("<think>"):
        text = "<think>" + text
    tags = list(TAGS.finditer(text))
    if [(tag[1], tag[2]) for tag in tags] != IN_ORDER:
        return False
    _, think_end, answer_start, answer_end = tags
    between, after = text[think_end.end() : answer_start.start()], text[answer_end.end() :]
    return not between.strip() and not after.strip() and bool(text[answer_start.end() : answer_end.start()].strip())


def _answer_after_think(text: str) -> bool:
    """Whether some `</think>` is followed by space and an answer block that closes anywhere after."""
    last_close = text.rfind("</answer>")
    return any(
        rest.lstrip().startswith("<answer>") and last_close >= len(text) - len(rest.lstrip()) + len("<answer>")
        for rest in (text[match.end() :] for match in re.finditer("</think>", text))
    )
