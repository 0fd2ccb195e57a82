"""The verifier `citations` through the scorer."""

from __future__ import annotations

import time

from judge_server import JudgeServer, Reply, between, mark
from judged_groups import group, reward

from shoal.rewards.scorer import Scorer
from shoal.rewards.verifiers.citations import Claim, find_claims, find_sources

SOURCES = '<snippet id="s1">Cats purr.</snippet> <document id=d2 url="u">Dogs bark.</document> '


def support(text: str) -> str:
    """Full support where the claim stands in the source, half where only its first word does."""
    claim, source = between(text, "claim"), between(text, "cited_source")
    return mark(2 if claim in source else 1 if claim.split()[0] in source else 0)


def score(*answers: str) -> list[float | None]:
    mine = group(*answers)
    with JudgeServer(support) as server:
        Scorer(reward(server, "citations"), {}).score([mine])
    return mine.rewards


def test_support_counts_six_tenths_and_ids_that_exist_four_tenths():
    assert score(
        SOURCES + '<answer><cite id="s1">Cats purr.</cite> <cite id="d2">Dogs meow.</cite></answer>',
        SOURCES + '<answer><cite id="s1, d2">Dogs bark.</cite> <cite id="nowhere">Cows fly.</cite></answer>',
        SOURCES + "<answer>Cats purr.</answer>",
        '<answer><cite id="s1">Cats purr.</cite></answer>',
    ) == [0.6 * 0.75 + 0.4, 0.6 * 0.5 + 0.4 * 2 / 3, 0.0, 0.0]


def test_a_verdict_that_is_missing_makes_the_completion_missing():
    mine = group(SOURCES + '<answer><cite id="s1">Cats</cite></answer>', "none")
    with JudgeServer(lambda text: Reply(status=400)) as server:
        Scorer(reward(server, "citations"), {}).score([mine])
    assert mine.rewards == [None, 0.0]


def test_claims_and_sources_are_found_where_they_close():
    text = SOURCES + '<snippet id="open">never <answer>x <cite id="s1">one</cite> <cite id=d2>two <cite id="s1">'
    assert find_claims(text + "</answer>") == [Claim("one", ("s1",))]
    assert find_sources(text) == {"s1": "Cats purr.", "d2": "Dogs bark."}


def test_hostile_text_is_read_in_linear_time():
    started = time.thread_time()  # of the processor: it has others to serve
    for piece in ('<cite id="a">', '<snippet id="a">', "<cite ", '<cite id="', "<cite id=" + " " * 50):
        find_claims(piece * 20_000)
        find_sources(piece * 20_000)
    assert time.thread_time() - started < 5
