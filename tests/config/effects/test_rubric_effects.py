"""Keys of `reward.rubric`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from judge_server import between, mark

from effects.judged import Outcome, ask, letters, rubrics
from effects.made import read_jsonl
from effects.registry import effect


@pytest.fixture
def judged(settings):
    """The outcome of a group under changed keys of `reward.rubric`, and a judge that counts letters."""
    return partial(_judged, settings)


def _judged(settings: Any, changes: dict[str, Any], *texts: str, truth: Any = None, **others: Any) -> Outcome:
    changes = {f"reward.rubric.{name}": value for name, value in changes.items()}
    arguments: dict[str, Any] = {
        "verifier": "rubric",
        "script": letters,
        "ground_truth": truth or rubrics(a=1.0),
        **others,
    }
    return ask(settings, changes, *texts, **arguments)


def written(outcome: Outcome) -> list[str]:
    """The questions that ask for new criteria."""
    return [text for text in outcome.server.questions if "<response_1>" in text]


def lists(outcome: Outcome) -> Any:
    """The prompt's entry of the buffer."""
    return outcome.scorer.state_dict()["learnt"]["rubric"]["buffer"].get("p")


def titles(rows: list[dict[str, Any]]) -> list[str]:
    return [row["title"] for row in rows]


@effect("reward.rubric.general")
def test_general_criteria_judge_beside_the_datas(settings, judged):
    assert judged({"general": "default"}, "a").metrics["rubric/criteria"] == 5
    assert judged({}, "a").metrics["rubric/criteria"] == 1


@effect("reward.rubric.mode")
def test_likert_asks_for_one_mark(settings, judged):
    assert judged({"mode": "likert"}, "a", script=lambda text: mark(10)).rewards == [1.0]
    assert judged({"mode": "criteria"}, "a").rewards == [0.5]


@effect("reward.rubric.answer")
def test_the_tagged_answer_alone_may_be_judged(settings, judged):
    assert judged({"answer": "tag"}, "a <answer>a</answer>").server.questions[0].count("<answer>") == 0
    assert judged({}, "a <answer>a</answer>").server.questions[0].count("<answer>") == 1


@effect("reward.rubric.closed_book")
def test_citations_are_taken_out_of_a_closed_book_answer(settings, judged):
    assert "<cite" not in judged({"closed_book": True}, '<cite id="1">a</cite>').server.questions[0]
    assert "<cite" in judged({}, '<cite id="1">a</cite>').server.questions[0]


@effect("reward.rubric.template_file")
def test_a_file_replaces_the_question_about_a_criterion(settings, judged, tmp_path: Path):
    (tmp_path / "mine.j2").write_text("{{ title }}?")
    asked = judged({"template_file": str(tmp_path / "mine.j2")}, "a", script=lambda text: mark(1)).server.questions
    assert asked == ["a?"] != judged({}, "a").server.questions


@effect("reward.rubric.normalize")
def test_normalised_scores_have_mean_zero(settings, judged):
    assert judged({"normalize": True}, "a", "aa").rewards == [-1.0, 1.0]
    assert judged({}, "a", "aa").rewards == [0.5, 1.0]


@effect("reward.rubric.adaptive")
def test_the_judge_writes_criteria_where_they_are_adaptive(settings, judged):
    assert judged({"adaptive": True}, "ax", "a").rewards == [1 / 3, 0.5 / 3]
    assert judged({}, "ax", "a").rewards == [0.5, 0.5]


@effect("reward.rubric.apply_to")
def test_new_criteria_apply_now_or_the_next_time(settings, judged):
    assert judged({"adaptive": True, "apply_to": "current"}, "ax", "a").metrics["rubric/criteria"] == 3
    assert judged({"adaptive": True, "apply_to": "future"}, "ax", "a").metrics["rubric/criteria"] == 1


@effect("reward.rubric.generator_model")
def test_another_model_may_write_the_criteria(settings, judged):
    outcome = judged({"adaptive": True, "generator_model": "writer"}, "ax", "a")
    assert {body["model"] for body in outcome.server.bodies} == {"writer", "gpt-4.1-mini"}
    assert {body["model"] for body in judged({"adaptive": True}, "ax", "a").server.bodies} == {"gpt-4.1-mini"}


@effect("reward.rubric.generator_template_file")
def test_a_file_replaces_the_question_for_criteria(settings, judged, tmp_path: Path):
    (tmp_path / "mine.j2").write_text("<response_1> of {{ responses | length }}")
    outcome = judged({"adaptive": True, "generator_template_file": str(tmp_path / "mine.j2")}, "ax", "a")
    assert written(outcome) == ["<response_1> of 2"] != written(judged({"adaptive": True}, "ax", "a"))


@effect("reward.rubric.full_responses")
def test_the_writer_sees_whole_completions_or_answers(settings, judged):
    texts = ("think <answer>a</answer>", "think <answer>b</answer>")
    assert "think" in between(written(judged({"adaptive": True, "full_responses": True}, *texts))[0], "response_1")
    assert "think" not in between(written(judged({"adaptive": True, "full_responses": False}, *texts))[0], "response_1")


@effect("reward.rubric.answer_words")
def test_the_writer_sees_so_many_words_of_answers(settings, judged):
    def responses(words: int) -> int:
        changes = {"adaptive": True, "full_responses": False, "answer_words": words}
        return written(judged(changes, *["a b c"] * 6))[0].count("</response_")

    assert (responses(9), responses(12)) == (3, 4)


@effect("reward.rubric.buffer")
def test_the_buffer_keeps_criteria_from_step_to_step(settings, judged):
    assert titles(lists(judged({"adaptive": True, "buffer": True}, "ax", "a"))["active"]) == ["x"]
    assert lists(judged({"adaptive": True, "buffer": False}, "ax", "a")) is None


@effect("reward.rubric.max_active")
def test_so_many_criteria_stay_active(settings, judged):
    texts = ("axxy", "a")
    assert titles(lists(judged({"adaptive": True, "max_active": 1}, *texts))["active"]) == ["x"]
    assert titles(lists(judged({"adaptive": True, "max_active": 2}, *texts))["active"]) == ["x", "y"]


@effect("reward.rubric.static_persistent")
def test_the_datas_criteria_may_leave_where_they_are_not_persistent(settings, judged):
    assert titles(lists(judged({"static_persistent": True}, "a", "a"))["persistent"]) == ["a"]
    assert titles(lists(judged({"static_persistent": False}, "a", "a"))["inactive"]) == ["a"]


@effect("reward.rubric.readd_static_every")
def test_the_datas_criteria_come_back_after_so_many_steps(settings, judged):
    def rewards(every: int) -> list[float | None]:
        return judged({"static_persistent": False, "readd_static_every": every}, "a", "a", steps=3).rewards

    assert rewards(2) == [0.5, 0.5]
    assert rewards(3) == [None, None]  # it left after step 1, and no other is there


@effect("reward.rubric.save")
def test_what_is_written_down_is_chosen(settings, judged, tmp_path: Path):
    def row(save: str) -> dict[str, Any] | None:
        folder = tmp_path / save
        folder.mkdir()
        judged({"save": save}, "a", folder=folder)
        file = folder / "adaptive_rubrics.jsonl"
        return read_jsonl(file)[0] if file.exists() else None

    off, criteria, responses = map(row, ("off", "rubrics", "responses"))
    assert off is None and criteria and "responses" not in criteria and responses and responses["responses"] == ["a"]


@effect("reward.rubric.log_direction_agreement")
def test_the_agreement_of_criteria_is_logged_where_asked(settings, judged):
    assert "rubric/direction" in judged({"log_direction_agreement": True}, "a", "aa").metrics
    assert "rubric/direction" not in judged({}, "a", "aa").metrics
