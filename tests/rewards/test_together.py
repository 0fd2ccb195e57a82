"""Rewards that are async or take a whole batch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NoReturn

import pytest

from shoal import Submission, batched
from shoal.config.nodes.data import RewardConfig
from shoal.rewards.scorer import Scorer
from shoal.types import Completion, Group, Prompt, Segment, StopReason


def group(*texts: str) -> Group:
    prompt = Prompt("p", [1], "5", columns={"level": 3})
    completions = [Completion([Segment([1], [2], [0.0], [True])], StopReason.STOP, text=text) for text in texts]
    return Group("p", completions, prompt)


def scored(function: object, *texts: str, **reward: object) -> Group:
    mine = group(*texts)
    with Scorer(RewardConfig(**reward), {"exact_answer": 1.0}, {"own": function}) as scorer:  # type: ignore
        scorer.score([mine])
    return mine


def test_async_rewards_wait_at_the_same_time() -> None:
    waiting = asyncio.Event()
    there: list[str] = []

    async def own(submission: Submission) -> float:
        there.append(submission.text)
        if len(there) == 3:
            waiting.set()
        await waiting.wait()  # for the others
        return float(len(submission.text))

    assert scored(own, "a", "bb", "ccc").rewards == [1.0, 2.0, 3.0]


def test_an_async_reward_that_raises_or_never_comes_is_missing() -> None:
    async def own(submission: Submission) -> float:
        if submission.text == "hang":
            await asyncio.Event().wait()
        return 1 / len(submission.text)

    mine = scored(own, "a", "", "hang", timeout=0.2)
    assert mine.rewards == [1.0, None, None]
    reasons = [completion.info.get("missing") for completion in mine.completions]
    assert reasons[1:] == [{"own": "ZeroDivisionError: division by zero"}, {"own": "no verdict within 0.2 s"}]


@pytest.mark.parametrize("is_async", [False, True])
def test_a_batched_reward_sees_all_submissions_and_may_leave_some_out(is_async: bool) -> None:
    seen: list[list[str]] = []

    def ranks(submissions: list[Submission]) -> list[float | None]:
        seen.append([submission.text for submission in submissions])
        assert {submission.columns["level"] for submission in submissions} == {3}
        return [float(len(one.text)) if one.text else None for one in submissions]

    async def later(submissions: list[Submission]) -> list[float | None]:
        return ranks(submissions)

    mine = scored(batched(later if is_async else ranks), "a", "", "ccc")
    assert mine.rewards == [1.0, None, 3.0]
    assert seen == [["a", "", "ccc"]]


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda submissions: [1.0], "gave 1 scores for 2 submissions"),
        (lambda submissions: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda submissions: ["x", "y"], "gave str, not a number"),
    ],
)
def test_a_batch_that_cannot_be_read_makes_its_rewards_missing(function: object, reason: str) -> None:
    mine = scored(batched(function), "a", "b")  # type: ignore[arg-type]
    assert mine.rewards == [None, None]
    assert mine.completions[0].info["missing"] == {"own": reason}


def test_an_async_reward_named_by_its_import_path_needs_no_worker() -> None:
    def open_pool(paths: Sequence[str], reward: RewardConfig) -> NoReturn:
        raise AssertionError(f"workers for {paths}")

    mine = group("a", "bb")
    with Scorer(RewardConfig(verifiers={"later_rewards:length": 1.0}), {}, open_pool=open_pool) as scorer:
        scorer.score([mine])
    assert mine.rewards == [1.0, 2.0]
