"""When a request is sent again, and when not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx
import pytest

from shoal.http import GaveUp, NotYet, RetryPolicy, retry_after


def silent(why: str, seconds: float) -> None:
    """Says nothing."""


def failing(*failures: BaseException) -> Callable[[], str]:
    """Raises these one after the other, then gives an answer."""
    left = list(failures)

    def once() -> str:
        if left:
            raise left.pop(0)
        return "answer"

    return once


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses, which take no time."""
    found: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", found.append)
    return found


def test_pauses_grow_to_a_bound_and_are_as_long_as_the_server_asks(slept: list[float]) -> None:
    policy = RetryPolicy(first_pause=1.0, growth=2.0, longest_pause=3.0, longest_asked=30.0)
    failures = [NotYet("a"), NotYet("b"), NotYet("c"), NotYet("d", asked=7.0), NotYet("e", asked=99.0)]
    assert policy.call(failing(*failures), silent) == "answer"
    assert slept == [1.0, 2.0, 3.0, 7.0, 30.0]


def test_no_pause_is_longer_than_what_is_left(slept: list[float]) -> None:
    RetryPolicy(seconds=5.0).call(failing(NotYet("busy", asked=20.0)), silent)
    assert 4.0 < slept[0] <= 5.0


def test_it_is_given_up_at_the_deadline_and_after_the_last_try(slept: list[float]) -> None:
    failures = [NotYet(f"try {number}") for number in range(1, 9)]
    with pytest.raises(GaveUp, match="try 1"):
        RetryPolicy(seconds=0.0).call(failing(*failures), silent)
    with pytest.raises(GaveUp, match="try 3") as given_up:
        RetryPolicy(tries=3).call(failing(*failures), silent)
    assert given_up.value.__cause__ is failures[2]
    assert len(slept) == 2


def test_another_failure_is_no_reason_to_try_again(slept: list[float]) -> None:
    with pytest.raises(ValueError, match="wrong"):
        RetryPolicy().call(failing(ValueError("wrong")), silent)
    assert slept == []


def test_people_are_told_why_they_wait(slept: list[float]) -> None:
    said: list[str] = []
    RetryPolicy(say_every=-1.0).call(failing(NotYet("one"), NotYet("two")), lambda why, _: said.append(why))
    RetryPolicy(say_every=60.0).call(failing(NotYet("three")), lambda why, _: said.append(why))
    assert said == ["one", "two"]


def test_coroutines_are_tried_again_alike() -> None:
    async def run(tries: int) -> str:
        plain = failing(NotYet("busy"), NotYet("busy"))

        async def once() -> str:
            return plain()

        return await RetryPolicy(tries=tries, first_pause=0.0).wait_for(once, silent)

    assert asyncio.run(run(3)) == "answer"
    with pytest.raises(GaveUp, match="busy"):
        asyncio.run(run(2))


@pytest.mark.parametrize(("status", "passes"), [(200, False), (400, False), (404, False), (429, True), (503, True)])
def test_a_busy_server_is_asked_again_and_one_that_refuses_is_not(status: int, passes: bool) -> None:
    reply = httpx.Response(status, headers={"Retry-After": "2.5"})
    if not passes:
        RetryPolicy().refuse_busy(reply, "busy")
        return
    with pytest.raises(NotYet) as failure:
        RetryPolicy().refuse_busy(reply, "busy")
    assert failure.value.asked == 2.5


@pytest.mark.parametrize(("given", "seconds"), [({}, 0.0), ({"Retry-After": "3"}, 3.0), ({"Retry-After": "Fri"}, 0.0)])
def test_only_seconds_are_read_of_what_a_server_asks_for(given: dict[str, str], seconds: float) -> None:
    assert retry_after(httpx.Response(503, headers=given)) == seconds
