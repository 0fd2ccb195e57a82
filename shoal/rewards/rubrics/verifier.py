"""The verifier `rubric`: completions are scored by the criteria of their prompt."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from shoal.config.nodes.data import RewardConfig
from shoal.rewards.answers.thinking import answering_part
from shoal.rewards.judged import Asked, JudgedVerifier, judged_verifier, question_of
from shoal.rewards.judging.client import Answer, JudgeClient, Question
from shoal.rewards.judging.replies import read_mark
from shoal.rewards.judging.templates import load_template
from shoal.rewards.rubrics.adaptive import generation_question, shown_responses
from shoal.rewards.rubrics.buffer import RubricBuffer
from shoal.rewards.rubrics.log import RubricLog
from shoal.rewards.rubrics.measures import Judged, criterion_metrics, direction_agreement, normalized, scored
from shoal.rewards.rubrics.rubric import Criterion, general_criteria, read_ground_truth, static_criteria
from shoal.rewards.verdict import Verdict
from shoal.rewards.verifiers.judge import as_verdict
from shoal.rewards.verifiers.strings import tagged_answer

CITATION = re.compile(r"</?cite\b[^<>]*>|\[\d+(?:,\s*\d+)*\]")
NO_CRITERIA = (
    "the prompt has no criteria: give its ground truth `rubrics`, or set reward.rubric.general=default, or "
    "reward.rubric.adaptive=true with reward.rubric.apply_to=current"
)
GRADES = 2.0  # of one criterion: 0, 1 or 2


@dataclass
class _Prompt:
    """The completions of one group on their way through a call."""

    prompt_id: str
    question: str = ""
    static: tuple[Criterion, ...] = ()
    problem: str = ""
    failure: str = ""
    places: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    answers: list[str | None] = field(default_factory=list)
    used: tuple[Criterion, ...] = ()
    added: list[Criterion] = field(default_factory=list)
    leaving: list[Criterion] = field(default_factory=list)


@judged_verifier("rubric")
class RubricVerifier(JudgedVerifier):
    """Sum of weight x score over the criteria of the prompt, over the sum of the positive weights (at least 1).

    The criteria are the general ones, the persistent ones of the prompt (with `static_persistent` those of the data)
    and its active ones. A completion with any verdict missing has no score. Without an answer, where only that is
    judged, every criterion scores 0.
    """

    def __init__(self, reward: RewardConfig, client: JudgeClient) -> None:
        super().__init__(reward, client)
        self.options = reward.rubric
        self.general = general_criteria(self.options.general)
        criterion = {"question": "", "answer": "", "closed_book": True}
        sample: dict[str, Any] = (
            {"title": "", "description": ""} if self.options.mode == "criteria" else {"criteria": []}
        )
        self.template = load_template(
            "criterion" if self.options.mode == "criteria" else "likert",
            self.options.template_file,
            "reward.rubric.template_file",
            **criterion,
            **sample,
        )
        self.generator = load_template(
            "generate",
            self.options.generator_template_file,
            "reward.rubric.generator_template_file",
            question="",
            responses=[],
            existing=[],
        )
        self.buffer = RubricBuffer(
            max_active=self.options.max_active,
            static_persistent=self.options.static_persistent,
            readd_static_every=self.options.readd_static_every,
        )
        self.log = RubricLog(client.folder) if client.folder and self.options.save != "off" else None
        self.last: dict[str, float] = {}

    def verdicts(self, asked: Sequence[Asked], step: int | None) -> list[Verdict]:
        prompts = self._prompts(asked)
        self.last = {}
        self._choose_criteria(prompts, step)
        verdicts = self._marks(prompts) if self.options.mode == "likert" else self._criteria_scores(prompts, step)
        for prompt in prompts:
            if prompt.problem:
                verdicts |= {place: Verdict(None, 0.0, prompt.problem) for place in prompt.places}
        if not self.options.buffer:
            self.buffer.entries.clear()
        return [verdicts[place] for place in range(len(asked))]

    def copy_for_asking(self) -> RubricVerifier:
        other = super().copy_for_asking()
        assert isinstance(other, RubricVerifier)
        other.log = None
        other.buffer = copy(self.buffer)
        other.restore(self.snapshot())
        return other

    def metrics(self) -> dict[str, float]:
        """`criterion_metrics` and, where asked for, `direction_agreement` of the last call. In training also, as
        numbers over its prompts: `rubric/added`, `rubric/duplicates`, `rubric/to_inactive` criteria,
        `rubric/generation_failed` prompts; `rubric/active`, active criteria per prompt."""
        return self.last

    def state_dict(self) -> dict[str, Any]:
        return {"buffer": self.buffer.state_dict()}

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        self.buffer.load_state_dict(state["buffer"])
        if self.log is not None:
            self.log.step = step

    def snapshot(self) -> Any:
        return dict(self.buffer.entries)

    def restore(self, snapshot: Any) -> None:
        self.buffer.entries = dict(snapshot)

    def _prompts(self, asked: Sequence[Asked]) -> list[_Prompt]:
        prompts: dict[int, _Prompt] = {}
        for place, one in enumerate(asked):
            prompt = prompts.get(one.group)
            if prompt is None:
                prompt = prompts[one.group] = self._new_prompt(one)
            text = one.submission.text
            answer = tagged_answer(answering_part(text)) if self.options.answer == "tag" else text
            if answer is not None and self.options.closed_book:
                answer = CITATION.sub("", answer)
            prompt.places.append(place)
            prompt.texts.append(text)
            prompt.answers.append(answer)
        return list(prompts.values())

    def _new_prompt(self, one: Asked) -> _Prompt:
        truth = read_ground_truth(one.submission.ground_truth)
        question = question_of(one.submission, truth)
        try:
            return _Prompt(one.prompt_id, question, static_criteria(truth))
        except ValueError as error:
            return _Prompt(one.prompt_id, question, problem=f"the row's rubrics cannot be read: {error}")

    def _choose_criteria(self, prompts: Sequence[_Prompt], step: int | None) -> None:
        """Sets `used` of each prompt; in training the buffer is opened, and the judge writes new criteria."""
        writing = self.options.adaptive and step is not None
        for prompt in prompts:
            if step is not None and not prompt.problem:
                self.buffer.open(prompt.prompt_id, prompt.static, step)
        if writing and self.options.apply_to == "current":
            self._write_criteria(prompts, step or 0)
        for prompt in prompts:
            prompt.used = self._used(prompt)
        if writing and self.options.apply_to == "future":
            self._write_criteria(prompts, step or 0)
        for prompt in prompts:
            if not prompt.used and self.options.mode == "criteria" and not prompt.problem:
                prompt.problem = prompt.failure or NO_CRITERIA

    def _used(self, prompt: _Prompt) -> tuple[Criterion, ...]:
        """One criterion that stands in two of the lists counts once."""
        criteria = (*self.general, *self.buffer.look(prompt.prompt_id, prompt.static).used)
        return tuple({criterion.key: criterion for criterion in reversed(criteria)}.values())[::-1]

    def _write_criteria(self, prompts: Sequence[_Prompt], step: int) -> None:
        asking = [prompt for prompt in prompts if not prompt.problem]
        answers = self.client.ask(
            [
                generation_question(
                    self.generator,
                    self.options,
                    prompt.question,
                    shown_responses(self.options, prompt.texts, f"{prompt.prompt_id}/{step}"),
                    self._used(prompt),
                    step,
                )
                for prompt in asking
            ]
        )
        counts = {"added": 0, "duplicates": 0, "generation_failed": 0}
        for prompt, answer in zip(asking, answers, strict=True):
            if answer.value is None:
                counts["generation_failed"] += 1
                prompt.failure = f"no criteria were written: {answer.reason}"
                continue
            prompt.added = self.buffer.add(prompt.prompt_id, answer.value, taken=self.general)
            counts["added"] += len(prompt.added)
            counts["duplicates"] += len(answer.value) - len(prompt.added)
        self.last |= {f"rubric/{name}": float(count) for name, count in counts.items()}

    def _marks(self, prompts: Sequence[_Prompt]) -> dict[int, Verdict]:
        """One mark from 1 to 10 for each completion, as a score from 0 to 1."""
        pairs = [
            (place, self._question(prompt, answer, lowest=1.0, highest=10.0, criteria=list(prompt.used)))
            for prompt in prompts
            for place, answer in zip(prompt.places, prompt.answers, strict=True)
            if answer is not None and not prompt.problem
        ]
        answers = self.client.ask([question for _, question in pairs])
        verdicts = {place: Verdict(0.0, 0.0) for prompt in prompts for place in prompt.places}
        return verdicts | {place: as_verdict(answer) for (place, _), answer in zip(pairs, answers, strict=True)}

    def _criteria_scores(self, prompts: Sequence[_Prompt], step: int | None) -> dict[int, Verdict]:
        usable = [prompt for prompt in prompts if not prompt.problem]
        answers = self._ask_criteria(usable)
        groups = [
            Judged(
                prompt.used,
                [{one.key: answers[place, one.key].value for one in prompt.used} for place in prompt.places],
            )
            for prompt in usable
        ]
        rewards = normalized(groups) if self.options.normalize else [judged.raw() for judged in groups]
        self.last |= criterion_metrics(groups)
        if self.options.log_direction_agreement:
            self.last |= direction_agreement(groups)
        if step is not None:
            self._learn(usable, groups, rewards, step)
        verdicts: dict[int, Verdict] = {}
        for prompt, row in zip(usable, rewards, strict=True):
            for place, reward in zip(prompt.places, row, strict=True):
                own = [answers[place, one.key] for one in prompt.used]
                reason = next((answer.reason for answer in own if answer.value is None), "")
                verdicts[place] = Verdict(reward, sum(answer.seconds for answer in own), reason)
        return verdicts

    def _ask_criteria(self, prompts: Sequence[_Prompt]) -> dict[tuple[int, str], Answer]:
        """An answer for every completion (by its place) and criterion of its prompt (by key)."""
        questions: dict[tuple[int, str], Question] = {}
        answers: dict[tuple[int, str], Answer] = {}
        for prompt in prompts:
            for place, text in zip(prompt.places, prompt.answers, strict=True):
                for one in prompt.used:
                    if text is None:
                        answers[place, one.key] = Answer(0.0)
                    else:
                        questions[place, one.key] = self._question(
                            prompt, text, lowest=0.0, highest=GRADES, title=one.title, description=one.description
                        )
        return answers | dict(zip(questions, self.client.ask(list(questions.values())), strict=True))

    def _question(self, prompt: _Prompt, answer: str, *, lowest: float, highest: float, **values: Any) -> Question:
        text = self.template.render(
            question=prompt.question, answer=answer, closed_book=self.options.closed_book, **values
        )
        return Question(text, partial(read_mark, lowest=lowest, highest=highest), partial(_mark, lowest, highest))

    def _learn(
        self, prompts: Sequence[_Prompt], groups: Sequence[Judged], rewards: Sequence[list[float | None]], step: int
    ) -> None:
        """Keeps the scores in the buffer, gives up criteria that tell nothing, and writes it all down."""
        rows = []
        for prompt, judged, row in zip(prompts, groups, rewards, strict=True):
            results = scored(judged, step)
            prompt.leaving = self.buffer.record(prompt.prompt_id, results)
            rows.append(self._log_row(prompt, judged, row, step))
        active = sum(len(self.buffer.entries[prompt.prompt_id].active) for prompt in prompts)
        self.last["rubric/to_inactive"] = float(sum(len(prompt.leaving) for prompt in prompts))
        if prompts:
            self.last["rubric/active"] = active / len(prompts)
        if self.log is not None:
            self.log.write(rows)

    def _log_row(self, prompt: _Prompt, judged: Judged, rewards: Sequence[float | None], step: int) -> dict[str, Any]:
        entry = self.buffer.entries[prompt.prompt_id]
        row: dict[str, Any] = {
            "step": step,
            "prompt": prompt.prompt_id,
            "question": prompt.question,
            "criteria": [
                {**one.to_dict(), "key": one.key, "scores": [scores[one.key] for scores in judged.scores]}
                for one in judged.criteria
            ],
            "rewards": list(rewards),
            "added": [one.to_dict() for one in prompt.added],
            "to_inactive": [one.key for one in prompt.leaving],
            "active": [one.key for one in entry.active],
            "inactive": [one.key for one in entry.inactive],
        }
        return row | ({"responses": prompt.texts} if self.options.save == "responses" else {})


def _mark(lowest: float, highest: float, share: float) -> str:
    return json.dumps({"score": lowest + share * (highest - lowest)})
