"""The client against a scripted server: what is retried, what is missing, what it costs."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from judge_server import JudgeServer, Reply, mark, one_after_another

from shoal.config.nodes.judge import JudgeConfig
from shoal.errors import BudgetError, ConfigError, TrainingError
from shoal.rewards.judging.client import Answer, JudgeClient, Question
from shoal.rewards.judging.replies import read_mark, read_object, read_winner
from shoal.rewards.judging.spending import Spending


def question(text: str) -> Question:
    return Question(text, lambda reply: read_mark(reply, 0, 10), lambda share: mark(10 * share))


def client(server: JudgeServer, folder: Path | None = None, **options: Any) -> JudgeClient:
    fast = {"base_url": server.url, "backoff": 0.01, "timeout": 60.0, "retries": 2}
    return JudgeClient(JudgeConfig(**{**fast, **options}), folder)


def ask_one(server: JudgeServer, text: str = "q", **options: Any) -> Answer:
    return client(server, **options).ask([question(text)])[0]


def test_answers_come_in_the_order_of_the_questions_and_equal_ones_are_asked_once():
    with JudgeServer(lambda text: mark(int(text))) as server:
        answers = client(server).ask([question(text) for text in ("3", "7", "3", "10")])
    assert [answer.value for answer in answers] == [0.3, 0.7, 0.3, 1.0]
    assert sorted(server.questions) == ["10", "3", "7"]


def test_the_request_holds_the_configured_fields_and_null_takes_one_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with JudgeServer(lambda text: mark(1)) as server:
        ask_one(server, model="m", temperature=None, body={"max_tokens": None, "max_completion_tokens": 9})
    message = {"role": "user", "content": "q"}
    assert server.bodies == [{"model": "m", "messages": [message], "max_completion_tokens": 9}]
    assert server.headers[0]["Authorization"] == "Bearer secret"


def test_requests_run_at_one_time_up_to_the_bound():
    together = threading.Barrier(8, timeout=60)

    def script(text: str) -> Reply:
        together.wait()
        return Reply(mark(5), delay=0.15)  # in which a ninth would come

    with JudgeServer(script) as server:
        client(server, concurrency=8).ask([question(str(number)) for number in range(24)])
    assert server.most_at_once == 8


FAILURES = {
    "a server error": Reply(status=500, body="oops"),
    "too many requests": Reply(status=429, body="slow down"),
    "malformed JSON in the reply": Reply('{"score": 7'),
    "a reply without a score": Reply("I would say seven."),
    "a mark out of range": Reply(mark(11)),
    "a reply without text": Reply(None),
    "a response that is no JSON": Reply(body="<html>"),
    "a response of another form": Reply(body='{"choices": []}'),
    "a slow reply": Reply(mark(7), delay=10.0),
}


def patience(name: str) -> float:
    return 1.5 if name == "a slow reply" else 60.0


@pytest.mark.parametrize("name", FAILURES)
def test_what_may_pass_is_asked_again(name: str):
    with JudgeServer(one_after_another(FAILURES[name], mark(7))) as server:
        answer = ask_one(server, timeout=patience(name))
    assert answer.value == 0.7
    assert len(server.bodies) == 2


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a server error", "status 500: oops"),
        ("malformed JSON in the reply", "no JSON object with 'score'"),
        ("a mark out of range", "11 is not between 0 and 10"),
        ("a slow reply", "no reply of the judge within 1.5 s"),
    ],
)
def test_what_does_not_pass_is_missing_with_its_reason(name: str, reason: str):
    with JudgeServer(one_after_another(FAILURES[name])) as server:
        answer = ask_one(server, timeout=patience(name), retries=1)
    assert answer.value is None and reason in answer.reason
    assert len(server.bodies) == 2


@pytest.mark.parametrize("status", [400, 401, 404])
def test_what_cannot_pass_is_not_asked_again(status: int):
    with JudgeServer(one_after_another(Reply(status=status, body="no"), mark(7))) as server:
        answer = ask_one(server)
    assert answer.value is None and f"status {status}" in answer.reason
    assert len(server.bodies) == 1


def test_a_judge_that_is_not_there_is_missing():
    with JudgeServer(lambda text: mark(1)) as server:
        gone = server.url
    answer = JudgeClient(JudgeConfig(base_url=gone, retries=1, backoff=0.01), None).ask([question("q")])[0]
    assert answer.value is None and "cannot be reached" in answer.reason


def test_pauses_double_and_retry_after_is_obeyed_up_to_the_timeout():
    with JudgeServer(one_after_another(Reply(status=503), Reply(status=503), mark(1))) as server:
        ask_one(server, backoff=0.1)
    first, second, third = server.times
    assert second - first >= 0.1 and third - second >= 0.2
    late = Reply(status=429, headers={"Retry-After": "0.5"})
    with JudgeServer(one_after_another(late, mark(1))) as server:
        assert ask_one(server).value == 0.1
    assert server.times[1] - server.times[0] >= 0.5
    never = Reply(status=429, headers={"Retry-After": "86400"})
    with JudgeServer(one_after_another(never, mark(1))) as server:
        assert ask_one(server, timeout=0.5).value == 0.1
    assert 0.5 <= server.times[1] - server.times[0] < 5


def test_one_failure_leaves_the_other_answers_alone():
    script = lambda text: Reply(status=400) if text == "bad" else mark(4)  # noqa: E731
    with JudgeServer(script) as server:
        answers = client(server).ask([question("good"), question("bad"), question("also good")])
    assert [answer.value for answer in answers] == [0.4, None, 0.4]


def test_replies_are_kept_on_disk_by_content_and_failures_are_not(tmp_path: Path):
    with JudgeServer(one_after_another(Reply(status=400), mark(7), mark(2), mark(9))) as server:
        assert client(server, tmp_path).ask([question("q")])[0].value is None
        assert client(server, tmp_path).ask([question("q")])[0].value == 0.7
        assert client(server, tmp_path).ask([question("q")])[0].value == 0.7
        assert client(server, tmp_path, model="other").ask([question("q")])[0].value == 0.2
        assert client(server, tmp_path / "elsewhere").ask([question("q")])[0].value == 0.9
    assert len(server.bodies) == 4
    assert (tmp_path / "judge_cache.sqlite").is_file()


def test_a_cached_reply_of_another_form_is_asked_for_again(tmp_path: Path):
    with JudgeServer(one_after_another(mark(50), mark(3))) as server:
        wide = Question("q", lambda reply: read_mark(reply, 0, 100), str)
        assert client(server, tmp_path).ask([wide])[0].value == 0.5
        assert client(server, tmp_path).ask([question("q")])[0].value == 0.3


def test_a_cache_that_is_no_database_is_refused(tmp_path: Path):
    (tmp_path / "judge_cache.sqlite").write_text("not a database, but long enough to be looked at" * 50)
    with pytest.raises(ConfigError, match=r"reward\.judge\.cache.*remove it"):
        JudgeClient(JudgeConfig(base_url="http://127.0.0.1:1/v1"), tmp_path)


def test_metrics_count_requests_tokens_and_cost_since_the_last_call(tmp_path: Path):
    with JudgeServer(one_after_another(Reply(status=500), mark(7))) as server:
        judge = client(server, tmp_path, price_in=2.0, price_out=5.0)
        judge.ask([question("q")])
        first = judge.metrics()
        judge.ask([question("q")])
        second = judge.metrics()
    assert (first["judge/requests"], first["judge/retries"], first["judge/cached"]) == (2, 1, 0)
    assert (first["judge/tokens_in"], first["judge/tokens_out"]) == (100, 10)
    assert first["judge/cost"] == pytest.approx((100 * 2 + 10 * 5) / 1e6)
    assert (second["judge/requests"], second["judge/cached"], second["judge/cost"]) == (0, 1, 0)
    assert second["judge/cost_total"] == first["judge/cost"]


def test_tokens_that_the_server_does_not_count_are_estimated():
    with JudgeServer(lambda text: Reply(mark(7), usage=None)) as server:
        judge = client(server)
        judge.ask([question("x" * 400)])
    assert judge.spent == Spending(1, 100, len(mark(7)) // 4)


def test_a_spent_budget_ends_the_asking_and_what_was_replied_is_kept(tmp_path: Path):
    # 110 tokens at 1,000 dollars a million are 0.11 dollars: the third request finds 0.22 of 0.2 spent.
    prices = {"price_in": 1000.0, "price_out": 1000.0, "concurrency": 1}
    with JudgeServer(lambda text: mark(7)) as server:
        with pytest.raises(BudgetError, match=r"budget=0\.2 dollars are spent: 0\.22 for 200 tokens .* 2 requests"):
            client(server, tmp_path, budget=0.2, **prices).ask([question(str(number)) for number in range(9)])
        assert len(server.bodies) == 2
        answers = client(server, tmp_path, budget=1.0, **prices).ask([question(str(number)) for number in range(9)])
    assert len(server.bodies) == 9 and all(answer.value == 0.7 for answer in answers)


def test_a_question_that_is_too_long_is_not_asked():
    with JudgeServer(lambda text: mark(7)) as server:
        long, short = client(server, max_prompt_tokens=10).ask([question("x" * 44), question("x" * 40)])
    assert long.value is None and "max_prompt_tokens=10" in long.reason and short.value == 0.7
    assert len(server.bodies) == 1


def test_it_works_inside_a_running_event_loop():
    async def notebook() -> Answer:
        return ask_one(server)

    with JudgeServer(lambda text: mark(7)) as server:
        assert asyncio.run(notebook()).value == 0.7


def test_made_up_replies_ask_nobody_and_repeat_themselves():
    judge = JudgeClient(JudgeConfig(made_up=True), None)
    values = [answer.value for answer in judge.ask([question(str(number)) for number in range(50)])]
    assert values == [answer.value for answer in judge.ask([question(str(number)) for number in range(50)])]
    assert len(set(values)) == 50 and 0.3 < sum(values) / 50 < 0.7


def test_openai_without_a_key_is_refused_and_another_address_is_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        JudgeClient(JudgeConfig(), None)
    with pytest.raises(ConfigError, match="is no address"):
        JudgeClient(JudgeConfig(base_url="127.0.0.1:8000"), None)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1/")
    assert JudgeClient(JudgeConfig(), None).url == "http://127.0.0.1:1/v1"


def test_no_thread_outlives_a_call():
    with JudgeServer(lambda text: mark(7)) as server:
        judge = client(server)
        before = set(threading.enumerate())
        judge.ask([question("q")])
        names = {thread.name for thread in set(threading.enumerate()) - before}
    assert not any("asyncio" in name or "ThreadPool" in name for name in names)


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ('{"score": 5}', 0.5),
        ('{"score": "5"}', 0.5),
        ('```json\n{"reasoning": "a {brace}", "score": 5.0}\n```', 0.5),
        ('The answer says {"score": 10}, but I give {"score": 2}', 0.2),
        ('{"outer": {"score": 1}, "score": 3}', 0.3),
        ('{broken {"score": 4}', 0.4),
    ],
)
def test_a_mark_is_read_from_the_last_object_that_has_one(reply: str, score: float):
    assert read_mark(reply, 0, 10) == score


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "{}",
        "7",
        '{"score": null}',
        '{"score": true}',
        '{"score": NaN}',
        '{"score": -1}',
        "[" * 5000 + '{"score": [',
    ],
)
def test_what_is_no_mark_is_refused(reply: str):
    with pytest.raises(ValueError):
        read_mark(reply, 0, 10)


def test_a_winner_is_a_b_or_a_tie():
    assert [read_winner(json.dumps({"winner": who})) for who in ("A", "b", "Tie")] == [1.0, 0.0, 0.5]
    with pytest.raises(ValueError, match="none of A, B and tie"):
        read_winner('{"winner": "C"}')
    with pytest.raises(ValueError, match="no JSON object with 'winner'"):
        read_object("A", "winner")


def test_a_cache_that_fails_in_the_middle_of_a_run_stops_it_in_one_line(tmp_path: Path):
    with JudgeServer(lambda text: mark(7)) as server:
        judge = client(server, tmp_path)
        judge.close()
        with pytest.raises(TrainingError, match=r"judge_cache\.sqlite cannot be used any more"):
            judge.ask([question("q")])
