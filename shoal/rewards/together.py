"""Verifiers that are not asked one completion at a time: async ones, and those that take all of a step at once."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from shoal.rewards.base import Submission, Verifier, is_batched
from shoal.rewards.verdict import LONGEST_REASON, Verdict, as_verdict

MOST_AT_ONCE = 64  # calls of an async verifier that wait at a time


def is_async(function: Verifier) -> bool:
    """Whether calling it gives something to await."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def judges_together(function: Verifier) -> bool:
    """Whether a verifier is async or takes a batch. Such a one runs in this process, and must return by itself."""
    return is_async(function) or is_batched(function)


def verdicts_together(function: Verifier, submissions: Sequence[Submission], timeout: float) -> list[Verdict]:
    """One verdict for each submission, in order. `timeout` is the deadline of one verdict in seconds: an async batch
    has as many of them as it has submissions; a batch that is not async is waited for."""
    if not is_async(function):
        return _batch_verdicts(submissions, lambda: function(list(submissions), **submissions[0].options))
    # A loop of its own in a thread of its own: the caller's thread may have one that runs.
    with ThreadPoolExecutor(1) as thread:
        if is_batched(function):

            def ask() -> Any:
                call = function(list(submissions), **submissions[0].options)
                return thread.submit(asyncio.run, asyncio.wait_for(call, timeout * len(submissions))).result()

            return _batch_verdicts(submissions, ask)
        return thread.submit(asyncio.run, _each(function, submissions, timeout)).result()


async def _each(function: Verifier, submissions: Sequence[Submission], timeout: float) -> list[Verdict]:
    room = asyncio.Semaphore(MOST_AT_ONCE)

    async def one(submission: Submission) -> Verdict:
        async with room:
            start = time.perf_counter()
            try:
                score = await asyncio.wait_for(function(submission, **submission.options), timeout)
            except Exception as error:  # noqa: BLE001 - foreign code; what it raised is kept and reported
                return Verdict(None, time.perf_counter() - start, _reason(error, timeout))
            return as_verdict(score, time.perf_counter() - start)

    return list(await asyncio.gather(*map(one, submissions)))


def _batch_verdicts(submissions: Sequence[Submission], ask: Any) -> list[Verdict]:
    start = time.perf_counter()
    count = len(submissions)
    try:
        scores = list(ask())
    except Exception as error:  # noqa: BLE001 - foreign code; what it raised is kept and reported
        share = (time.perf_counter() - start) / count
        return [Verdict(None, share, _reason(error, 0.0))] * count
    share = (time.perf_counter() - start) / count
    if len(scores) != count:
        return [Verdict(None, share, f"gave {len(scores)} scores for {count} submissions")] * count
    return [as_verdict(score, share) for score in scores]


def _reason(error: Exception, timeout: float) -> str:
    if isinstance(error, TimeoutError) and not str(error):
        return f"no verdict within {timeout:g} s" if timeout else "no verdicts in time"
    return f"{type(error).__name__}: {error}"[:LONGEST_REASON]
