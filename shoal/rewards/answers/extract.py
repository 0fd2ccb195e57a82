"""Where the answer stands in a completion, and what of it is mathematics."""

from __future__ import annotations

import re

from shoal.rewards.answers.number_text import as_text, last_number
from shoal.rewards.answers.thinking import answering_part
from shoal.rewards.verifiers.strings import tagged_answer

BOXES = ("\\boxed", "\\fbox")
BRACE = re.compile(r"(?<!\\)[{}]")
MOST_BOXES = 50  # tried from the end; a text with more that do not close has no answer
ANSWER_MARK = "####"
MINERVA_START = re.compile(r"final answer is:?", re.IGNORECASE)
MINERVA_END = re.compile(r"I hope it is correct", re.IGNORECASE)
TAIL = 4000  # characters at the end of a text in which an answer without any mark is looked for
ANSWER_WORDS = re.compile(r"answer(?:\s+is|\s*[:=])\s*:?\**\s*", re.IGNORECASE)
SENTENCE_END = re.compile(r"[.!?;](?=\s|$)|\n|,?\s+(?:because|since|so|which|where|when|as)\b")
# One dollar opens before what is no space, and closes after what is none and before no digit (Pandoc's rule), so that
# "$5 and then $13" is money; \\$ is never a delimiter.
LATEX_SPAN = re.compile(
    r"\$\$(.+?)\$\$|(?<![\\$])\$(?![\s$])((?:[^$\\\n]|\\.|\n(?!\s*\n))+)(?<![\s=+\-*/(<])\$(?!\d)|\\\((.+?)\\\)|\\\[(.+?)\\\]",
    re.DOTALL,
)
PROSE = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{2,}\s+[A-Za-z]{2,}")  # two words in a row stand in no formula
TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|mbox)[a-z]*\s*\{[^{}]*\}")


def last_boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{...}` or `\fbox{...}` whose braces close, or after `\boxed ` without braces."""
    end = len(text)
    for _ in range(MOST_BOXES):
        start = max(text.rfind(BOXES[0], 0, end), text.rfind(BOXES[1], 0, end))
        if start < 0:
            return None
        word = next(box for box in BOXES if text.startswith(box, start))
        rest = text[start + len(word) :].lstrip()
        if not rest.startswith("{"):
            bare = re.match(r"[^\s$\\,;]+", rest)
            if bare:
                return bare.group().rstrip(".")
        else:
            inside = _in_braces(rest)
            if inside is not None:
                return inside
        end = start
    return None


def minerva_answer(text: str) -> str | None:
    """The answer of "Final Answer: The final answer is X. I hope it is correct."; None without that sentence."""
    ends = [match.start() for match in MINERVA_END.finditer(text)]
    end = ends[-1] if ends else 0
    starts = [match.end() for match in MINERVA_START.finditer(text, 0, end)]
    return text[starts[-1] : end].strip().removesuffix(".").strip() if starts else None


def last_answer(text: str) -> str:
    r"""The answer of a completion, the first of these that there is (each time its last): `\boxed`, `<answer>`,
    Minerva's sentence, after `####`, after "answer is", LaTeX between dollars, a number, the last line."""
    text = answering_part(text)
    for marked in (last_boxed, tagged_answer, minerva_answer):
        answer = marked(text)
        if answer is not None:
            return answer
    _, mark, after = text.rpartition(ANSWER_MARK)
    if mark:
        return (after.strip().splitlines() or [""])[0]
    parts = ANSWER_WORDS.split(text)
    if len(parts) > 1:
        after = parts[-1].strip()[:TAIL]
        spans = _latex_spans(after.split("\n")[0])
        return spans[0] if spans else SENTENCE_END.split(after, maxsplit=1)[0]
    if len(text) > TAIL:
        text = text[-TAIL:].partition("\n")[2] or text[-TAIL:]
    spans = _latex_spans(text)
    if spans:
        return spans[-1]
    found = last_number(text)
    return as_text(found) if found else (text.splitlines() or [""])[-1]


def _latex_spans(text: str) -> list[str]:
    """What stands between dollars or in \\( \\) and \\[ \\]; money and the prose between two sums are passed over."""
    spans, position = [], 0
    while (match := LATEX_SPAN.search(text, position)) is not None:
        if match[2] and PROSE.search(TEXT_COMMAND.sub("", match[2])):
            position = match.start() + 1
            continue
        spans.append(next(group for group in match.groups() if group))
        position = match.end()
    return spans


def _in_braces(text: str) -> str | None:
    """The inside of the group that `text` begins with; None where it does not close."""
    depth = 0
    for brace in BRACE.finditer(text):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[1 : brace.start()].strip()
    return None
