"""The verifier `judge` through the scorer, with each template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from judge_server import JudgeServer, Reply, between, mark
from judged_groups import group, reward

from shoal.errors import ConfigError, TrainingError
from shoal.rewards.scorer import Scorer
from shoal.rewards.try_out import score_rows
from shoal.rewards.verifiers.judge import ring_pairs


def test_quality_gives_a_mark_out_of_ten_as_a_share_of_one():
    mine = group("good", "bad", "middling")
    marks = {"good": 10, "bad": 0, "middling": 5}
    with JudgeServer(lambda text: mark(marks[between(text, "answer_to_grade")])) as server:
        report = Scorer(reward(server, "judge"), {}).score([mine]).check()
    assert mine.rewards == [1.0, 0.0, 0.5]
    assert {between(text, "question") for text in server.questions} == {"How many?"}
    metrics = report.metrics()
    assert (metrics["rewards/judge/count"], metrics["rewards/judge/mean"], metrics["judge/requests"]) == (3, 0.5, 3)
    assert metrics["rewards/judge/seconds"] > 0


def test_quality_against_a_reference_shows_the_ground_truth_and_needs_one():
    mine, without = group("ten", truth=["10", "ten"]), group("ten", id="q")
    with JudgeServer(lambda text: mark(8)) as server:
        Scorer(reward(server, "judge", {"template": "quality_reference"}), {}).score([mine, without])
    assert (mine.rewards, without.rewards) == ([0.8], [None])
    assert [between(text, "reference_answer") for text in server.questions] == ["10\nten"]
    assert without.completions[0].info["missing"] == {"judge": "the row has no ground truth"}


def longer(text: str) -> str:
    first, second = len(between(text, "answer_a")), len(between(text, "answer_b"))
    return json.dumps({"winner": "tie" if first == second else "A" if first > second else "B"})


def test_pairwise_scores_the_share_of_comparisons_won():
    mine = group("x", "xx", "xxx", "xx")
    with JudgeServer(longer) as server:
        Scorer(reward(server, "judge", {"template": "pairwise"}), {}).score([mine])
    # All 6 pairs: x loses 3; each xx beats x, ties with the other, loses to xxx; xxx wins 3.
    assert mine.rewards == [0.0, 0.5, 1.0, 0.5]
    assert len(server.bodies) == 6


def test_pairwise_needs_another_completion_of_the_group():
    mine = group("x")
    with JudgeServer(longer) as server:
        Scorer(reward(server, "judge", {"template": "pairwise"}), {}).score([mine])
    assert mine.rewards == [None]
    assert "no other completion" in mine.completions[0].info["missing"]["judge"]


def test_the_ring_compares_each_with_its_neighbours_first_as_often_as_second():
    pairs = ring_pairs([0] * 8 + [1] * 3, comparisons=2)
    assert len(pairs) == 8 * 2 + 3 and len(set(map(frozenset, pairs))) == len(pairs)
    assert all((first < 8) == (second < 8) for first, second in pairs)
    for index in range(11):
        assert sum(first == index for first, _ in pairs) == sum(second == index for _, second in pairs)
    assert len(ring_pairs([0] * 6, comparisons=99)) == 15


def test_a_verdict_that_could_not_be_had_is_missing_and_too_many_stop_the_run():
    mine = group("good", "bad", "good", "good")
    script = lambda text: Reply(status=500) if between(text, "answer_to_grade") == "bad" else mark(10)  # noqa: E731
    with JudgeServer(script) as server:
        options = reward(server, "judge")
        report = Scorer(options, {}).score([mine]).check()
        assert mine.rewards == [1.0, None, 1.0, 1.0]
        assert mine.known_rewards == [1.0, 1.0, 1.0]
        assert report.metrics()["rewards/missing"] == 0.25 and report.metrics()["judge/failed"] == 1
        options.max_missing = 0.2
        with pytest.raises(
            TrainingError, match=r"1 of 4 rewards are missing.*judge: the judge answered with status 500"
        ):
            Scorer(options, {}).score([mine]).check()


def test_a_template_file_replaces_the_text_and_a_wrong_name_in_it_is_refused(tmp_path: Path):
    file = tmp_path / "mine.j2"
    file.write_text("Rate <a>{{ answer }}</a> for {{ question }} out of {{ highest }}")
    with JudgeServer(lambda text: mark(2)) as server:
        mine = group("x")
        Scorer(reward(server, "judge", {"template_file": str(file), "highest": 4.0}), {}).score([mine])
        assert mine.rewards == [0.5] and server.questions == ["Rate <a>x</a> for How many? out of 4"]
        file.write_text("{{ answers }}")
        with pytest.raises(ConfigError, match=r"template_file=.*'answers' is undefined; there are answer, highest"):
            Scorer(reward(server, "judge", {"template_file": str(file)}), {})
        with pytest.raises(ConfigError, match="cannot be read"):
            Scorer(reward(server, "judge", {"template_file": str(tmp_path / "none.j2")}), {})


def test_a_judge_and_a_verifier_are_added_up():
    mine = group("<answer>10</answer>", "<answer>11</answer>", truth="10")
    with JudgeServer(lambda text: mark(5)) as server:
        options = reward(server, "judge")
        options.verifiers = {"judge": 2.0, "exact_answer": 1.0}
        Scorer(options, {}).score([mine])
    assert mine.rewards == [2.0, 1.0]


def test_rows_can_be_tried_out_with_a_judge():
    with JudgeServer(lambda text: mark(5)) as server:
        rows, _ = score_rows([{"completion": "x", "ground_truth": None}], "judge", reward(server, "judge"))
    assert rows[0]["score"] == 0.5


def test_a_function_of_ones_own_named_judge_asks_nobody():
    with JudgeServer(lambda text: mark(5)) as server:
        mine = group("x")
        Scorer(reward(server, "judge"), {}, {"judge": lambda submission: 0.25}).score([mine])
    assert mine.rewards == [0.25] and server.bodies == []


def test_options_of_a_judge_stand_elsewhere():
    with JudgeServer(lambda text: mark(5)) as server:
        options = reward(server, "judge")
        options.options = {"judge": {"model": "m"}}
        with pytest.raises(ConfigError, match=r"reward\.judge"):
            Scorer(options, {})
