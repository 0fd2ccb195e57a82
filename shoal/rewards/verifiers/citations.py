"""The verifier `citations`: whether the answer cites sources that it was shown, and whether these say so."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

from shoal.config.nodes.data import RewardConfig
from shoal.rewards.answers.thinking import answering_part
from shoal.rewards.judged import Asked, JudgedVerifier, judged_verifier
from shoal.rewards.judging.client import Answer, JudgeClient, Question
from shoal.rewards.judging.replies import read_mark
from shoal.rewards.judging.templates import load_template
from shoal.rewards.verdict import Verdict
from shoal.rewards.verifiers.strings import OPENING, tagged_answer

SOURCE = re.compile(r"<(snippet|document|webpage)\s+id=[\"']?([^\"'<>\s]+)[\"']?[^<>]*>")
CITE = re.compile(r"<(cite)\s+id=[\"']?([^\"'<>]+?)[\"']?\s*>")
SUPPORT, VALIDITY = 0.6, 0.4  # dr-tulu's shares
GRADES = 2.0


@dataclass(frozen=True)
class Claim:
    """A cited stretch of an answer, and the ids that it cites."""

    text: str
    ids: tuple[str, ...]


@judged_verifier("citations")
class CitationVerifier(JudgedVerifier):
    """0.6 x mean support of the claims + 0.4 x share of cited ids that there are.

    A claim is `<cite id="a,b">claim</cite>` in the last `<answer>` after the thinking (in all of that where there
    is none), a source `<snippet id="a">text</snippet>` (or `document`, `webpage`) before it. The judge says how far the
    sources of a claim support it. Without a claim the score is 0.
    """

    def __init__(self, reward: RewardConfig, client: JudgeClient) -> None:
        super().__init__(reward, client)
        self.template = load_template("citation", None, "", claim="", source="")

    def verdicts(self, asked: Sequence[Asked], step: int | None) -> list[Verdict]:
        texts = [one.submission.text for one in asked]
        claims, sources = [find_claims(text) for text in texts], [find_sources(text) for text in texts]
        questions: list[Question] = []
        for own, known in zip(claims, sources, strict=True):
            questions += [self._question(claim, known) for claim in own if set(claim.ids) & set(known)]
        answers = iter(self.client.ask(questions))
        verdicts = []
        for own, known in zip(claims, sources, strict=True):
            support = [next(answers) if set(claim.ids) & set(known) else Answer(0.0) for claim in own]
            verdicts.append(_verdict(own, support, known))
        return verdicts

    def _question(self, claim: Claim, sources: dict[str, str]) -> Question:
        source = "\n\n".join(sources[one] for one in claim.ids if one in sources)
        return Question(
            self.template.render(claim=claim.text, source=source),
            read=partial(read_mark, lowest=0.0, highest=GRADES),
            made_up=lambda share: json.dumps({"score": share * GRADES}),
        )


def find_claims(text: str) -> list[Claim]:
    """The cited stretches of the answer, in order."""
    text = answering_part(text)
    answer = tagged_answer(text)
    found = _elements(CITE, text if answer is None else answer)
    return [Claim(inside.strip(), tuple(one.strip() for one in ids.split(",") if one.strip())) for ids, inside in found]


def find_sources(text: str) -> dict[str, str]:
    """The sources that stand before the answer, by id."""
    before, tag, _ = text.rpartition(OPENING)
    return {name: inside.strip() for name, inside in _elements(SOURCE, before if tag else text)}


def _elements(opening: re.Pattern[str], text: str) -> list[tuple[str, str]]:
    """(id, inside) of each element that closes, in time linear in the text."""
    found = []
    end = 0
    unclosed: set[str] = set()
    for match in opening.finditer(text):
        tag = match[1]
        if match.start() < end or tag in unclosed:
            continue
        close = text.find(f"</{tag}>", match.end())
        if close < 0:
            unclosed.add(tag)
            continue
        end = close
        found.append((match[2], text[match.end() : close]))
    return found


def _verdict(claims: Sequence[Claim], support: Sequence[Answer], sources: dict[str, str]) -> Verdict:
    if not claims:
        return Verdict(0.0, 0.0)
    seconds = sum(answer.seconds for answer in support)
    for answer in support:
        if answer.value is None:
            return Verdict(None, seconds, answer.reason)
    cited = [one in sources for claim in claims for one in claim.ids]
    validity = fmean(cited) if cited else 0.0
    return Verdict(SUPPORT * fmean(answer.value for answer in support) + VALIDITY * validity, seconds)
