"""Results on their way from a server: in chunks, none held back for nothing, none lost between two threads."""

from __future__ import annotations

import asyncio
import json
from math import inf, isnan, nan
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest

from shoal.engines.servers import results as results_module
from shoal.engines.servers.requests import output_of, scored
from shoal.engines.servers.results import Results, to_lines
from shoal.engines.vllm.inside import app
from shoal.types import Segment

SECONDS = 30.0


async def chunks_of(results: Results) -> list[list[dict[str, Any]]]:
    return [chunk async for chunk in results.chunks()]


def gathered(count: int, put: Any) -> list[list[dict[str, Any]]]:
    """The chunks of `count` results that `put` is given to put in, in a thread of its own."""

    async def run() -> list[list[dict[str, Any]]]:
        results = Results(count)
        thread = Thread(target=put, args=(results,))
        thread.start()
        try:
            return await asyncio.wait_for(chunks_of(results), SECONDS)
        finally:
            thread.join()

    return asyncio.run(run())


def test_results_of_another_thread_all_come_out_once_and_in_order_and_many_at_a_time():
    def put(results: Results) -> None:
        for number in range(5000):
            results.put({"id": number})

    found = gathered(5000, put)
    assert [result["id"] for chunk in found for result in chunk] == list(range(5000))
    assert len(found) < 500


def test_the_last_results_wait_for_no_others(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(results_module, "GATHER_SECONDS", 2 * SECONDS)
    assert gathered(1, lambda results: results.put({"id": 1})) == [[{"id": 1}]]


def test_nothing_is_waited_for_where_nothing_was_asked():
    assert gathered(0, lambda results: None) == []


def test_an_error_ends_the_wait_after_what_came_before_it():
    def put(results: Results) -> None:
        results.put({"id": 1})
        results.fail(RuntimeError("the engine died"))

    with pytest.raises(RuntimeError, match="the engine died"):
        gathered(3, put)


def test_log_probs_that_are_no_numbers_are_so_at_the_other_end_too():
    sent = {"id": "a", "tokens": [1, 2, 3], "logprobs": [-0.1, nan, -inf], "reason": "stop"}
    came = json.loads(to_lines([sent]))
    [first, second, third] = output_of(came, [(0, 0)]).logprobs
    assert first == -0.1 and isnan(second) and isnan(third)
    [[again, *_]] = scored([Segment([4], [1, 2, 3], [], [])], [came])
    assert again == -0.1


def test_vllms_route_gives_lines_and_breaks_off_where_a_request_fails(monkeypatch: pytest.MonkeyPatch):
    async def generate(engine: Any, asked: dict[str, Any], adapter: Any) -> dict[str, Any]:
        if asked["id"] == "bad":
            raise RuntimeError("the engine core died")
        return {"id": asked["id"], "adapter": adapter}

    monkeypatch.setattr(app.vllm_compat, "generate", generate)
    found: list[bytes] = []

    async def ask(*names: str) -> None:
        async for lines in app._lines(None, [{"id": name} for name in names], SimpleNamespace(shoal_adapter="policy")):
            found.extend(lines.splitlines())

    asyncio.run(ask("a", "b"))
    assert [json.loads(line) for line in found] == [{"id": "a", "adapter": "policy"}, {"id": "b", "adapter": "policy"}]
    with pytest.raises(RuntimeError, match="the engine core died"):
        asyncio.run(ask("a", "bad"))
