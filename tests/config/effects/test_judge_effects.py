"""Keys of `reward.judge`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from judge_server import JudgeServer, Reply, mark, one_after_another

from effects.judged import ask
from effects.made import one_group
from effects.registry import effect
from shoal.errors import BudgetError
from shoal.rewards.scorer import Scorer


def body(settings: Any, changes: dict[str, Any]) -> dict[str, Any]:
    return ask(settings, changes, "text").server.bodies[0]


@effect("reward.judge.model")
def test_the_model_is_named_in_the_request(settings):
    assert body(settings, {"reward.judge.model": "another"})["model"] == "another"
    assert body(settings, {})["model"] == "gpt-4.1-mini"


@effect("reward.judge.base_url")
def test_the_address_is_the_one_that_is_asked(settings):
    with JudgeServer(lambda text: mark(1)) as first, JudgeServer(lambda text: mark(2)) as second:
        for server, reward in ((first, 0.1), (second, 0.2)):
            cfg = settings({"reward.verifiers": {"judge": 1.0}, "reward.judge.base_url": server.url})
            group = one_group("text")
            with Scorer(cfg.reward, {}) as scorer:
                scorer.score([group])
            assert group.rewards == [reward]


@effect("reward.judge.template")
def test_the_template_is_what_is_asked(settings):
    texts = {
        name: ask(settings, {"reward.judge.template": name}, "a", "b", script=lambda text: mark(1) + '{"winner": "A"}')
        for name in ("quality", "quality_reference", "pairwise")
    }
    for part, name in (("reference_answer", "quality_reference"), ("answer_b", "pairwise")):
        assert {other for other, one in texts.items() if f"<{part}>" in one.server.questions[0]} == {name}


@effect("reward.judge.template_file")
def test_a_file_replaces_the_template(settings, tmp_path: Path):
    (tmp_path / "mine.j2").write_text("Grade {{ answer }}")
    assert ask(settings, {"reward.judge.template_file": str(tmp_path / "mine.j2")}, "x").server.questions == ["Grade x"]
    assert ask(settings, {}, "x").server.questions != ["Grade x"]


@effect("reward.judge.highest")
def test_the_highest_mark_scores_one(settings):
    assert ask(settings, {"reward.judge.highest": 5.0}, "x").rewards == [1.0]
    assert ask(settings, {}, "x").rewards == [0.5]


@effect("reward.judge.comparisons")
def test_each_completion_is_compared_to_so_many(settings):
    def pairs(count: int) -> int:
        changes = {"reward.judge.template": "pairwise", "reward.judge.comparisons": count}
        return len(ask(settings, changes, *"abcdefg", script=lambda text: '{"winner": "tie"}').server.bodies)

    assert (pairs(1), pairs(2)) == (7, 14)


@effect("reward.judge.temperature")
def test_the_temperature_is_sent_unless_it_is_null(settings):
    assert body(settings, {"reward.judge.temperature": 0.7})["temperature"] == 0.7
    assert "temperature" not in body(settings, {"reward.judge.temperature": None})


@effect("reward.judge.max_tokens")
def test_the_bound_of_a_reply_is_sent(settings):
    assert body(settings, {"reward.judge.max_tokens": 7})["max_tokens"] == 7
    assert body(settings, {})["max_tokens"] == 2048


@effect("reward.judge.max_prompt_tokens")
def test_a_question_that_is_too_long_is_missing(settings):
    assert ask(settings, {"reward.judge.max_prompt_tokens": 20}, "x").rewards == [None]
    assert ask(settings, {}, "x").rewards == [0.5]


@effect("reward.judge.body")
def test_further_fields_are_sent(settings):
    assert body(settings, {"reward.judge.body": {"seed": 3}})["seed"] == 3
    assert "seed" not in body(settings, {})


@effect("reward.judge.concurrency")
def test_so_many_requests_run_at_one_time(settings):
    def most(count: int) -> int:
        script = lambda text: Reply(mark(5), delay=0.2)  # noqa: E731
        return ask(settings, {"reward.judge.concurrency": count}, *"abcdef", script=script).server.most_at_once

    assert most(1) == 1 < most(6)


@effect("reward.judge.timeout")
def test_a_reply_after_the_deadline_is_none(settings):
    slow = lambda text: Reply(mark(5), delay=1.0)  # noqa: E731
    changes = {"reward.judge.retries": 0}
    assert ask(settings, {**changes, "reward.judge.timeout": 0.1}, "x", script=slow).rewards == [None]
    assert ask(settings, changes, "x", script=slow).rewards == [0.5]


@effect("reward.judge.retries")
def test_a_failure_is_tried_again_so_often(settings):
    script = one_after_another(*[Reply(status=500)] * 2, mark(5))
    assert ask(settings, {"reward.judge.retries": 1}, "x", script=script).rewards == [None]
    script = one_after_another(*[Reply(status=500)] * 2, mark(5))
    assert ask(settings, {"reward.judge.retries": 2}, "x", script=script).rewards == [0.5]


@effect("reward.judge.backoff")
def test_the_first_pause_is_so_long(settings):
    def pause(seconds: float) -> float:
        script = one_after_another(Reply(status=500), mark(5))
        times = ask(settings, {"reward.judge.backoff": seconds}, "x", script=script).server.times
        return times[1] - times[0]

    assert pause(1.5) >= 1.5 > pause(0.0)


@effect("reward.judge.cache")
def test_a_folder_keeps_replies_for_other_runs(settings, tmp_path: Path):
    shared = {"reward.judge.cache": str(tmp_path / "shared")}
    asked = [
        len(ask(settings, changes, "x").server.bodies) for changes in (shared, shared, {"reward.judge.cache": None})
    ]
    assert asked == [1, 0, 1]


@effect("reward.judge.price_in", "reward.judge.price_out")
def test_the_prices_make_the_cost(settings):
    def cost(price_in: float, price_out: float) -> float:
        changes = {"reward.judge.price_in": price_in, "reward.judge.price_out": price_out}
        return ask(settings, changes, "x").metrics["judge/cost"]

    # The server counts 100 tokens in and 10 out.
    assert [cost(0.0, 0.0), cost(1e4, 0.0), cost(0.0, 1e4)] == pytest.approx([0, 1, 0.1])


@effect("reward.judge.budget")
def test_a_spent_budget_stops_the_asking(settings):
    changes = {"reward.judge.price_in": 1e4, "reward.judge.concurrency": 1}
    with pytest.raises(BudgetError, match="2 for 200 tokens"):
        ask(settings, {**changes, "reward.judge.budget": 1.5}, *"abc")
    assert ask(settings, {**changes, "reward.judge.budget": 0.0}, *"abc").rewards == [0.5] * 3


@effect("reward.judge.made_up")
def test_made_up_verdicts_ask_nobody(settings):
    assert ask(settings, {"reward.judge.made_up": True}, "x").server.bodies == []
    assert json.dumps(ask(settings, {}, "x").server.bodies) != "[]"
