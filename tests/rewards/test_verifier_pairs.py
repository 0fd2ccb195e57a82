"""Any two verifiers judge a completion together as each judges it alone."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
from judge_server import JudgeServer

from shoal.config.nodes.data import RewardConfig
from shoal.config.nodes.judge import JudgeConfig
from shoal.config.nodes.reward import FormatConfig
from shoal.errors import ConfigError
from shoal.rewards.base import REGISTRY
from shoal.rewards.judged import JUDGED
from shoal.rewards.lookup import find_verifier
from shoal.rewards.scorer import Scorer
from shoal.types import Completion, Group, Prompt, Segment, StopReason

TEXT = "<think>9+9</think><answer>18</answer>"
TRUTHS: dict[str, Any] = {
    "citations": {"query": "How many?"},
    "code": ["assert f() == 18"],
    "ifeval": {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    "json_schema": {"type": "integer"},
    "max_length": 10,
    "rubric": {"query": "How many?", "rubrics": [{"title": "a", "description": "is a number", "weight": 1.0}]},
    "up_to_max_length": 10,
}
TRUTHS |= dict.fromkeys(("ifeval_loose", "ifeval_torchrl"), TRUTHS["ifeval"])
NAMES = sorted(name for name in (*REGISTRY, *JUDGED) if ":" not in name)


def usable(name: str) -> bool:
    if name in JUDGED:
        return True
    if not REGISTRY[name].function.__module__.startswith("shoal."):
        return False  # another test's
    try:
        find_verifier(name)
    except ConfigError:  # an optional package is not installed
        return False
    return True


def judged_by(names: tuple[str, ...], number: int = 0) -> Group:
    """One completion whose row names these verifiers, each with a ground truth of its own."""
    truths = {name: TRUTHS.get(name, "18") for name in names}
    prompt = Prompt(f"p{number}", [1], truths, list(names), [{"role": "user", "content": "How many?"}])
    return Group(prompt.id, [Completion([Segment([1], [2], [0.0], [True])], StopReason.STOP, text=TEXT)], prompt)


def parts_of(scorer: Scorer, names: tuple[str, ...]) -> dict[str, float | None]:
    group = judged_by(names)
    scorer.score([group])
    return group.completions[0].reward_parts


@pytest.fixture(scope="module")
def server() -> Any:
    with JudgeServer(lambda text: '{"score": 2}') as server:
        yield server


def reward(server: JudgeServer, **changes: Any) -> RewardConfig:
    judge = JudgeConfig(base_url=server.url, backoff=0.0, retries=0)
    return RewardConfig(judge=judge, timeout=60.0, **changes)


@pytest.mark.slow
@pytest.mark.usefixtures("bubblewrap")
def test_any_two_verifiers_together_score_as_each_alone(server: JudgeServer) -> None:
    names = [name for name in NAMES if usable(name)]
    with Scorer(reward(server), {}) as scorer:
        alone = {name: parts_of(scorer, (name,))[name] for name in names}
        assert sum(score is not None for score in alone.values()) > len(names) / 2
        pairs = list(combinations(names, 2))
        groups = [judged_by(pair, number) for number, pair in enumerate(pairs)]
        scorer.score(groups)
    for pair, group in zip(pairs, groups, strict=True):
        assert group.completions[0].reward_parts == {name: alone[name] for name in pair}, pair


@pytest.mark.parametrize("judged", sorted(JUDGED))
def test_a_judge_asked_before_the_first_worker_is_there_can_be_asked_after(server: JudgeServer, judged: str) -> None:
    with Scorer(reward(server, format=FormatConfig(pattern="think_answer", scale=1.0)), {}) as scorer:
        for _ in range(2):
            group = judged_by((judged,))
            scorer.score([group])
            parts = group.completions[0].reward_parts
            assert parts["format"] == 1.0
            assert judged == "citations" or parts[judged] is not None
