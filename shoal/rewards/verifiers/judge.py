"""The verifier `judge`: a language model marks each completion, or says which of two is better."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from statistics import fmean

from jinja2 import Template

from shoal.config.nodes.data import RewardConfig
from shoal.rewards.judged import Asked, JudgedVerifier, judged_verifier, question_of
from shoal.rewards.judging.client import Answer, JudgeClient, Question
from shoal.rewards.judging.replies import read_mark, read_winner
from shoal.rewards.judging.templates import load_template
from shoal.rewards.verdict import Verdict

PAIRWISE = "pairwise"
REFERENCE = "quality_reference"


@judged_verifier("judge")
class JudgeVerifier(JudgedVerifier):
    """A mark from 0 to `highest` as a score from 0 to 1; `pairwise` the share of comparisons within the group that
    are won, a tie counting half. A completion with any verdict missing is without a score."""

    def __init__(self, reward: RewardConfig, client: JudgeClient) -> None:
        super().__init__(reward, client)
        self.template = judge_template(reward)

    def verdicts(self, asked: Sequence[Asked], step: int | None) -> list[Verdict]:
        if self.reward.judge.template == PAIRWISE:
            return self._compared(asked)
        free = self.reward.judge.template != REFERENCE
        able = [one for one in asked if free or one.submission.ground_truth is not None]
        answers = dict(zip(map(id, able), self.client.ask([self._mark(one) for one in able]), strict=True))
        return [as_verdict(answers.get(id(one), Answer(None, "the row has no ground truth"))) for one in asked]

    def _mark(self, one: Asked) -> Question:
        highest = self.reward.judge.highest
        text = self.template.render(
            question=question_of(one.submission),
            answer=one.submission.text,
            reference=reference_of(one),
            highest=f"{highest:g}",
        )
        return Question(
            text,
            read=lambda reply: read_mark(reply, 0.0, highest),
            made_up=lambda share: json.dumps({"score": share * highest}),
        )

    def _compared(self, asked: Sequence[Asked]) -> list[Verdict]:
        """Each pair is asked about once. Who stands first is decided by the places in the ring, so that over a group
        every completion stands first about as often as second, and a judge's liking for the first cancels out."""
        pairs = ring_pairs([one.group for one in asked], self.reward.judge.comparisons)
        answers = self.client.ask([self._pair(asked[first], asked[second]) for first, second in pairs])
        outcomes: dict[int, list[Answer]] = defaultdict(list)
        for (first, second), answer in zip(pairs, answers, strict=True):
            lost = None if answer.value is None else 1 - answer.value
            outcomes[first].append(answer)
            outcomes[second].append(Answer(lost, answer.reason))  # its time counts once
        return [_share_won(outcomes[index]) for index in range(len(asked))]

    def _pair(self, first: Asked, second: Asked) -> Question:
        text = self.template.render(
            question=question_of(first.submission),
            first=first.submission.text,
            second=second.submission.text,
            reference=reference_of(first),
        )
        return Question(
            text,
            read=read_winner,
            made_up=lambda share: json.dumps({"winner": "A" if share < 0.5 else "B"}),
        )


def judge_template(reward: RewardConfig) -> Template:
    """The text of the verifier's questions.

    Raises:
        ConfigError: `reward.judge.template_file` cannot be used.
    """
    texts = (
        "question",
        "reference",
        *(("first", "second") if reward.judge.template == PAIRWISE else ("answer", "highest")),
    )
    return load_template(
        reward.judge.template, reward.judge.template_file, "reward.judge.template_file", **dict.fromkeys(texts, "")
    )


def reference_of(one: Asked) -> str:
    """The ground truth as text; several right answers stand one a line."""
    truth = one.submission.ground_truth
    return "\n".join(map(str, truth)) if isinstance(truth, list) else "" if truth is None else str(truth)


def as_verdict(answer: Answer) -> Verdict:
    """A judge's answer as a verifier's verdict."""
    return Verdict(answer.value, answer.seconds, answer.reason)


def ring_pairs(groups: Sequence[int], comparisons: int) -> list[tuple[int, int]]:
    """Pairs of indices within the same group: each with the `comparisons` that follow it in the group's ring."""
    members: dict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    pairs: dict[frozenset[int], tuple[int, int]] = {}
    for ring in members.values():
        for step, place in product(range(1, min(comparisons, len(ring) // 2) + 1), range(len(ring))):
            pair = (ring[place], ring[(place + step) % len(ring)])
            pairs.setdefault(frozenset(pair), pair)
    return list(pairs.values())


def _share_won(outcomes: Sequence[Answer]) -> Verdict:
    if not outcomes:
        return Verdict(None, 0.0, "its group has no other completion to compare it to")
    seconds = sum(answer.seconds for answer in outcomes)
    for answer in outcomes:
        if answer.value is None:
            return Verdict(None, seconds, answer.reason)
    return Verdict(fmean(answer.value for answer in outcomes), seconds)
