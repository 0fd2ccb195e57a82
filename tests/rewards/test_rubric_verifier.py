"""The verifier `rubric` through the scorer, against a scripted judge; golden numbers stand with their derivation."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from judge_server import JudgeServer, Reply, between, mark
from judged_groups import count_letters, group, reward, row

from shoal.config.nodes.rubric import RubricConfig
from shoal.errors import ConfigError
from shoal.rewards.rubrics.adaptive import shown_responses
from shoal.rewards.rubrics.measures import Judged, direction_agreement, normalized
from shoal.rewards.rubrics.rubric import Criterion, general_criteria, read_criteria
from shoal.rewards.scorer import Scorer


def truth(*rows: dict[str, Any], query: str = "Spell it.") -> str:
    return json.dumps({"query": query, "rubrics": list(rows)})


def generating(script: Any, positive: Sequence[str] = (), negative: Sequence[str] = ()) -> Any:
    """`script`, and criteria when they are asked for."""
    made = {
        "positive_rubrics": [{"title": title, "description": f"has {title}"} for title in positive],
        "negative_rubrics": [{"title": title, "description": f"has {title}"} for title in negative],
    }
    return lambda text: json.dumps(made) if "<response_1>" in text else script(text)


def log_rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "adaptive_rubrics.jsonl").read_text().splitlines()]


def active(scorer: Scorer, prompt: str = "p") -> list[str]:
    return [one.title for one in scorer.judged["rubric"].buffer.entries[prompt].active]  # type: ignore[attr-defined]


def inactive(scorer: Scorer, prompt: str = "p") -> list[str]:
    return [one.title for one in scorer.judged["rubric"].buffer.entries[prompt].inactive]  # type: ignore[attr-defined]


def test_the_datas_criteria_are_weighted_and_a_flaw_takes_off():
    # Weights 3, 1 and -2; scores 0, 1/2, 1 by 0, 1, 2 letters; over the positive weights, 4.
    mine = group("aab", "c", "aabbcc", truth=truth(row("a", weight=3), row("b", weight=1), row("c", weight=-2)))
    with JudgeServer(count_letters) as server:
        report = Scorer(reward(server, "rubric"), {}).score([mine])
    assert mine.rewards == [(3 * 1 + 1 * 0.5) / 4, -2 * 0.5 / 4, (3 + 1 - 2) / 4]
    assert {between(text, "question") for text in server.questions} == {"Spell it."}
    assert report.metrics()["rubric/criteria"] == 3


def test_the_denominator_is_at_least_one():
    mine = group("cc", truth=truth(row("c", weight=-0.5)))
    with JudgeServer(count_letters) as server:
        Scorer(reward(server, "rubric"), {}).score([mine])
    assert mine.rewards == [-0.5]


def test_a_ground_truth_may_be_an_object_and_the_question_the_last_user_message():
    mine = group("a", truth={"rubrics": [row("a")]})
    with JudgeServer(count_letters) as server:
        Scorer(reward(server, "rubric"), {}).score([mine])
    assert mine.rewards == [0.5] and between(server.questions[0], "question") == "How many?"


def test_rubrics_that_cannot_be_read_and_prompts_without_any_are_missing_with_the_reason():
    broken, without = group("a", truth=truth({"title": "a"})), group("a", truth="10", id="q")
    with JudgeServer(count_letters) as server:
        Scorer(reward(server, "rubric"), {}).score([broken, without], step=1)
    assert broken.rewards == without.rewards == [None]
    assert "criterion 1 has no description" in broken.completions[0].info["missing"]["rubric"]
    assert "reward.rubric.general=default" in without.completions[0].info["missing"]["rubric"]
    assert server.bodies == []


def test_the_general_rubric_judges_every_prompt_beside_the_datas_own(tmp_path: Path):
    file = tmp_path / "general.yaml"
    file.write_text("- {title: b, description: has b, weight: 1}\n")
    own, other = group("ab", truth=truth(row("a"))), group("bb", truth="10", id="q")
    with JudgeServer(count_letters) as server:
        metrics = Scorer(reward(server, "rubric", general=str(file)), {}).score([own, other]).metrics()
    assert own.rewards == [(0.5 + 0.5) / 2] and other.rewards == [1.0]
    # Over the two completions of both prompts: 1/2 and 1.
    assert (metrics["rubric/b/mean"], metrics["rubric/b/std"]) == (0.75, 0.25)


def test_the_built_in_general_rubric_has_four_criteria_of_weight_one():
    assert [(one.title, one.weight) for one in general_criteria("default")] == [
        ("Comprehensive", 1), ("Thorough", 1), ("Factual", 1), ("Coherent", 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text", ["- {title: x}", "a: b", "- [1", "- {description: d, weight: heavy}", "- {description: d, weight: .nan}"]
)
def test_a_file_that_is_no_rubric_is_refused_in_one_line(tmp_path: Path, text: str):
    (tmp_path / "general.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"reward\.rubric\.general=") as caught:
        general_criteria(str(tmp_path / "general.yaml"))
    assert "\n" not in str(caught.value)


def test_likert_gives_one_mark_in_view_of_the_criteria():
    mine = group("good", "bad", "fair", truth=truth(row("a", weight=-2)))
    marks = {"good": 10, "bad": 1, "fair": 5.5}
    with JudgeServer(lambda text: mark(marks[between(text, "answer_to_grade")])) as server:
        Scorer(reward(server, "rubric", mode="likert"), {}).score([mine], step=1)
    assert mine.rewards == [1.0, 0.0, 0.5]
    assert all("- (-2) a: has a" in text for text in server.questions) and len(server.bodies) == 3


def test_a_missing_verdict_on_one_criterion_makes_the_completion_missing_and_no_other():
    mine = group("aab", "ab!", "b", truth=truth(row("a"), row("b")))
    script = lambda text: Reply(status=500) if "!" in text and "has b" in text else count_letters(text)  # noqa: E731
    with JudgeServer(script) as server:
        report = Scorer(reward(server, "rubric"), {}).score([mine], step=1)
    assert mine.rewards == [0.75, None, 0.25]
    assert "status 500" in mine.completions[1].info["missing"]["rubric"]
    # a: 1, 1/2, 0; b: 1/2, 1/2 are known and equal.
    metrics = report.metrics()
    assert metrics["rubric/all_equal"] == 0.5 and metrics["rubric/criterion_mean"] == (0.5 + 0.5) / 2


def test_only_the_tagged_answer_is_judged_where_asked_and_none_scores_0_unasked():
    mine = group("aa <answer>b</answer>", "aa", truth=truth(row("a"), row("b", weight=3)))
    with JudgeServer(count_letters) as server:
        Scorer(reward(server, "rubric", answer="tag"), {}).score([mine])
    assert mine.rewards == [3 * 0.5 / 4, 0.0]
    assert {between(text, "answer_to_check") for text in server.questions} == {"b"}


def test_a_closed_book_answer_is_judged_without_its_citation_marks():
    mine = group('x <cite id="s1">a</cite> [1, 2].', truth=truth(row("a")))
    with JudgeServer(count_letters) as server:
        Scorer(reward(server, "rubric", closed_book=True), {}).score([mine])
        Scorer(reward(server, "rubric"), {}).score([mine])
    closed, opened = server.questions
    assert between(closed, "answer_to_check") == "x a ." and "from memory" in closed
    assert "<cite" in opened and "from memory" not in opened


def test_a_template_file_replaces_the_question_about_a_criterion(tmp_path: Path):
    (tmp_path / "mine.j2").write_text("{{ title }}|{{ description }}|{{ answer }}|{{ question }}")
    mine = group("x", truth=truth(row("a")))
    with JudgeServer(lambda text: mark(2)) as server:
        Scorer(reward(server, "rubric", template_file=str(tmp_path / "mine.j2")), {}).score([mine])
    assert server.questions == ["a|has a|x|Spell it."]


def test_normalisation_applies_each_weight_once_so_that_a_flaw_stays_a_flaw():
    # Scores of the flaw c: 0, 1; mean 1/2, deviation 1/2: -1, +1; times -2, over max(0, 1). Of a, with weight 3: equal,
    # so 0 in both. Denominator: 3.
    mine = group("aa", "aacc", truth=truth(row("a", weight=3), row("c", weight=-2)))
    with JudgeServer(count_letters) as server:
        Scorer(reward(server, "rubric", normalize=True), {}).score([mine])
    assert mine.rewards == [pytest.approx(2 / 3), pytest.approx(-2 / 3)]


def test_normalisation_of_a_general_criterion_goes_over_the_whole_step():
    shared = Criterion("g", "d", 1.0, "general")
    groups = [Judged((shared,), [{shared.key: 0.0}, {shared.key: 0.5}]), Judged((shared,), [{shared.key: 1.0}])]
    # Mean 1/2, population deviation sqrt(1/6).
    z = 0.5 / math.sqrt(1 / 6)
    assert normalized(groups) == [[pytest.approx(-z), 0.0], [pytest.approx(z)]]


def test_new_criteria_judge_the_same_group_where_they_apply_to_the_current_one(tmp_path: Path):
    mine = group("ax", "ay", "a", truth=truth(row("a")))
    with JudgeServer(generating(count_letters, positive=["x"], negative=["y"])) as server:
        scorer = Scorer(reward(server, "rubric", adaptive=True), {}, folder=tmp_path)
        metrics = scorer.score([mine], step=1).metrics()
    # a: 1/2 for all; x: 1/2, 0, 0 with weight 1; y: 0, 1/2, 0 with weight -1; over 2.
    assert mine.rewards == [(0.5 + 0.5) / 2, (0.5 - 0.5) / 2, 0.5 / 2]
    assert (metrics["rubric/added"], metrics["rubric/duplicates"], metrics["rubric/to_inactive"]) == (2, 0, 0)
    assert active(scorer) == ["x", "y"] and metrics["rubric/active"] == 2
    [logged] = log_rows(tmp_path)
    assert [(one["title"], one["weight"], one["origin"], one["born"]) for one in logged["criteria"]] == [
        ("a", 1, "static", 0), ("x", 1, "adaptive", 1), ("y", -1, "adaptive", 1),
    ]  # fmt: skip
    assert logged["criteria"][1]["scores"] == [0.5, 0, 0] and logged["rewards"] == mine.rewards
    assert [one["title"] for one in logged["added"]] == ["x", "y"] and "responses" not in logged


def test_new_criteria_wait_for_the_prompts_next_group_where_they_apply_to_the_future():
    first, second = (group("ax", "a", truth=truth(row("a"))) for _ in range(2))
    with JudgeServer(generating(count_letters, positive=["x"])) as server:
        scorer = Scorer(reward(server, "rubric", adaptive=True, apply_to="future"), {})
        scorer.score([first], step=1)
        assert active(scorer) == ["x"]
        scorer.score([second], step=2)
    assert first.rewards == [0.5, 0.5]
    assert second.rewards == [0.5, 0.25]


def test_the_generator_is_told_the_general_persistent_and_active_criteria_and_the_responses(tmp_path: Path):
    (tmp_path / "general.yaml").write_text("- {title: g, description: has g}\n")
    with JudgeServer(generating(count_letters, positive=["x"])) as server:
        options = reward(
            server, "rubric", adaptive=True, general=str(tmp_path / "general.yaml"), generator_model="writer"
        )
        scorer = Scorer(options, {})
        for step in (1, 2):
            scorer.score([group("xa", f"ga{step}", truth=truth(row("a", weight=2)))], step=step)
    asked = [body for body in server.bodies if body["model"] == "writer"]
    first, second = (body["messages"][0]["content"] for body in asked)
    assert (between(first, "response_1"), between(first, "response_2")) == ("xa", "ga1")
    assert between(first, "existing_criteria") == "- (+1) g: has g\n- (+2) a: has a"
    assert between(second, "existing_criteria").endswith("- (+1) x: has x")


def test_duplicates_of_what_is_there_are_not_added():
    with JudgeServer(generating(count_letters, positive=["A", "x", "X"])) as server:
        scorer = Scorer(reward(server, "rubric", adaptive=True), {})
        metrics = scorer.score([group("ax", "a", truth=truth(row("a")))], step=1).metrics()
    assert active(scorer) == ["x"]
    assert (metrics["rubric/added"], metrics["rubric/duplicates"]) == (1, 2)


def test_criteria_that_are_true_of_all_or_none_become_inactive_and_the_largest_deviations_stay():
    # Deviations over the four: x 1/2 (0 0 1 1), y sqrt(3)/4 (0 0 0 1), z 1/4 (0 0 1/2 1/2), a and n 0.
    mine = group("a", "a", "axxz", "axxyyz")
    with JudgeServer(generating(count_letters, positive=["z", "a", "y"], negative=["x", "n"])) as server:
        scorer = Scorer(reward(server, "rubric", adaptive=True, max_active=2), {})
        metrics = scorer.score([mine], step=1).metrics()
    assert active(scorer) == ["y", "x"] and inactive(scorer) == ["z", "a", "n"]
    assert metrics["rubric/to_inactive"] == 3
    assert metrics["rubric/all_zero"] == 1 / 5 and metrics["rubric/all_equal"] == 2 / 5
    # z 1/4, a 1/2, y 1/4, x 1/2, n 0 on average.
    assert metrics["rubric/criterion_mean"] == pytest.approx(1.5 / 5)
    assert metrics["rubric/criterion_std"] == pytest.approx((0.5 + math.sqrt(3) / 4 + 0.25) / 5)


def test_the_share_of_completions_that_differ_from_their_groups_mean():
    same, split = group("a", "a", truth=truth(row("a"))), group("a", "aa", "", "a", id="q", truth=truth(row("a")))
    with JudgeServer(count_letters) as server:
        metrics = Scorer(reward(server, "rubric"), {}).score([same, split]).metrics()
    assert metrics["rubric/nonzero_advantage"] == 2 / 6  # 1 and 0 of a mean of 1/2


def test_a_generation_that_failed_leaves_the_prompts_criteria_as_they_are():
    script = lambda text: "I cannot" if "<response_1>" in text else count_letters(text)  # noqa: E731
    mine, bare = group("aa", "a", truth=truth(row("a"))), group("a", "", id="q")
    with JudgeServer(script) as server:
        metrics = Scorer(reward(server, "rubric", adaptive=True), {}).score([mine, bare], step=1).metrics()
    assert mine.rewards == [1.0, 0.5] and metrics["rubric/generation_failed"] == 2
    assert "no criteria were written: the reply has no JSON" in bare.completions[0].info["missing"]["rubric"]


def test_outside_of_training_nothing_is_learnt(tmp_path: Path):
    with JudgeServer(generating(count_letters, positive=["x"])) as server:
        scorer = Scorer(reward(server, "rubric", adaptive=True), {}, folder=tmp_path)
        mine = group("ax", "a", truth=truth(row("a")))
        scorer.score([mine])
    assert mine.rewards == [0.5, 0.5]
    assert scorer.state_dict()["learnt"]["rubric"] == {"buffer": {}}
    assert not (tmp_path / "adaptive_rubrics.jsonl").exists()


def test_without_a_buffer_criteria_live_for_one_step():
    with JudgeServer(generating(count_letters, positive=["x"])) as server:
        scorer = Scorer(reward(server, "rubric", adaptive=True, buffer=False), {})
        for step in (1, 2):
            mine = group("ax", f"a{step}", truth=truth(row("a")))
            scorer.score([mine], step=step)
            assert mine.rewards == [0.5, 0.25]
            assert scorer.judged["rubric"].buffer.entries == {}  # type: ignore[attr-defined]
    assert all("has x" not in between(text, "existing_criteria") for text in server.questions)


def test_the_datas_criteria_may_start_active_and_are_added_again():
    options = {"static_persistent": False, "readd_static_every": 2}
    used = []
    with JudgeServer(count_letters) as server:
        scorer = Scorer(reward(server, "rubric", **options), {})
        for step in (1, 2, 3, 4):
            mine = group("aab", "b", truth=truth(row("a"), row("b")))
            used.append(scorer.score([mine], step=step).metrics()["rubric/criteria"])
            assert (active(scorer), inactive(scorer)) == (["a"], ["b"])  # b is in both to the same extent
    assert used == [2, 1, 2, 1]


def test_all_responses_or_a_random_few_answers_are_shown_to_the_generator():
    texts = [f"thinking <answer>{'w ' * 10}{number}</answer>" for number in range(8)]
    assert shown_responses(RubricConfig(), texts, "seed") == texts
    few = shown_responses(RubricConfig(full_responses=False, answer_words=35), texts, "seed")
    assert len(few) == 3 and all("thinking" not in text and len(text.split()) == 11 for text in few)
    assert few == shown_responses(RubricConfig(full_responses=False, answer_words=35), texts, "seed")
    assert few != shown_responses(RubricConfig(full_responses=False, answer_words=35), texts, "another")
    assert len(shown_responses(RubricConfig(full_responses=False, answer_words=1), texts, "seed")) == 2


def test_what_is_saved_is_chosen(tmp_path: Path):
    for save in ("off", "responses"):
        with JudgeServer(count_letters) as server:
            scorer = Scorer(reward(server, "rubric", save=save), {}, folder=tmp_path)
            scorer.score([group("aa", "b", truth=truth(row("a")))], step=1)
        assert (tmp_path / "adaptive_rubrics.jsonl").exists() == (save != "off")
    assert log_rows(tmp_path)[0]["responses"] == ["aa", "b"]


def test_the_state_goes_through_a_checkpoint_and_later_rows_are_dropped(tmp_path: Path):
    def step(scorer: Scorer, number: int) -> None:
        scorer.score([group("ax", f"a{number}", truth=truth(row("a")))], step=number)

    with JudgeServer(generating(count_letters, positive=["x"])) as server:
        options = reward(server, "rubric", adaptive=True)
        scorer = Scorer(options, {}, folder=tmp_path)
        for number in (1, 2):
            step(scorer, number)
        state = json.loads(json.dumps(scorer.state_dict()))
        step(scorer, 3)
        whole, end = log_rows(tmp_path), scorer.state_dict()
        with (tmp_path / "adaptive_rubrics.jsonl").open("a") as file:
            file.write('{"step": 4, "half')
        again = Scorer(options, {}, folder=tmp_path)
        again.load_state_dict(state, 2)
        step(again, 3)
    assert log_rows(tmp_path) == whole and [one["step"] for one in whole] == [1, 2, 3]
    assert again.state_dict()["learnt"] == end["learnt"]
    [entry] = end["learnt"]["rubric"]["buffer"].values()
    assert [result[0] for result in entry["history"][read_criteria([row("x")], "adaptive")[0].key]] == [1, 2, 3]
    assert state["spent"]["requests"] > 0 and again.state_dict()["spent"]["requests"] == state["spent"]["requests"]


def test_a_snapshot_takes_back_what_was_learnt_since():
    with JudgeServer(generating(count_letters, positive=["x"])) as server:
        scorer = Scorer(reward(server, "rubric", adaptive=True), {})
        scorer.score([group("ax", "a", truth=truth(row("a")))], step=1)
        before, learnt = scorer.snapshot(), scorer.state_dict()["learnt"]
        scorer.score([group("ax", "a2", truth=truth(row("a"))), group("b", "x", id="q")], step=2)
        assert scorer.state_dict()["learnt"] != learnt
        scorer.restore(before)
    assert scorer.state_dict()["learnt"] == learnt


def test_direction_agreement_is_the_signed_correlation_with_the_raw_score():
    merit, flaw, same = (
        Criterion("m", "d", 2.0, "general"),
        Criterion("f", "d", -1.0, "general"),
        Criterion("s", "d", 1.0, "static"),
    )
    rows = [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)]
    judged = Judged((merit, flaw, same), [{merit.key: m, flaw.key: f, same.key: 1.0} for m, f in rows])
    assert direction_agreement([judged]) == {
        "rubric/m/direction": pytest.approx(1),
        "rubric/f/direction": pytest.approx(1),
        "rubric/direction": pytest.approx(1),
    }


def test_direction_agreement_is_logged_where_asked():
    mine = group("aab", "b", "a", truth=truth(row("a")))
    with JudgeServer(count_letters) as server:
        logged = Scorer(reward(server, "rubric", log_direction_agreement=True), {}).score([mine]).metrics()
        silent = Scorer(reward(server, "rubric"), {}).score([mine]).metrics()
    assert logged["rubric/direction"] == pytest.approx(1.0) and "rubric/direction" not in silent
