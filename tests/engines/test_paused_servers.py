"""Requests that meet a pause, of their server or of the whole trainer, on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest

from shoal.engines.base import EngineOutput, Request, SamplingParams
from shoal.engines.servers.engine import ServersEngine
from shoal.engines.servers.requests import RequestForm
from shoal.engines.servers.server import Server
from shoal.errors import EngineError


class StandIn(Server):
    """A server that answers when it is told to, and says of its requests what it is told."""

    option = timeout_key = "a stand-in"

    def __init__(self, owner: ServersEngine) -> None:
        super().__init__(owner, "http://127.0.0.1:1", "none")
        self.asked: list[str] = []
        self.was_asked = Event()
        self.answers: asyncio.Queue[str] = asyncio.Queue()
        self.counts: list[dict[str, int]] = []
        self.answer_at_count: str | None = None
        self.posted: list[str] = []

    async def ask(self, client: Any, requests: Sequence[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
        self.asked += [one["id"] for one in requests]
        self.was_asked.set()
        for _ in requests:
            id_ = await self.answers.get()
            yield {"id": id_, "tokens": [1, 2, 3], "logprobs": [0.0, 0.0, 0.0], "reason": "stop"}

    async def metrics(self, client: Any) -> dict[str, float]:
        return {}

    def answer(self, id_: str) -> None:
        self.owner.loop.call_soon_threadsafe(self.answers.put_nowait, id_)  # type: ignore[attr-defined]

    def _post(self, path: str, what: str, body: dict[str, Any]) -> Any:
        self.posted.append(path)
        if path == "/shoal/counts":
            if self.answer_at_count is not None:
                self.answer(self.answer_at_count)
                self.answer_at_count = None
            return self.counts.pop(0) if len(self.counts) > 1 else self.counts[0]
        return {}


@pytest.fixture
def engine() -> Iterator[ServersEngine]:
    form = RequestForm([0], None, 64, 64)
    made = ServersEngine(form, timeout=30.0, restarts=0, open_servers=lambda owner: [StandIn(owner)])  # type: ignore[arg-type]
    made.version = 0
    yield made
    made.close()


def ask(engine: ServersEngine) -> StandIn:
    engine.submit([Request("a", (5,), 1, SamplingParams(8))])
    [server] = engine.servers
    assert isinstance(server, StandIn)
    return server


def output(engine: ServersEngine) -> EngineOutput:
    while engine.in_flight:
        for found in engine.poll(0.1):
            return found
    raise AssertionError("nothing is under way")


def test_nothing_is_asked_of_a_server_from_before_its_pause_until_it_goes_on(engine: ServersEngine):
    [server] = engine.servers
    assert isinstance(server, StandIn)
    server.counts = [{}]
    server.pause("drain")
    ask(engine)
    engine.refresh(1)
    assert server.asked == []
    server.resume()
    assert server.was_asked.wait(30)
    server.answer("a")
    assert output(engine).versions == [(0, 1)]


@pytest.mark.parametrize("mode", ["drain", "abort", "keep"])
def test_a_request_that_comes_to_a_server_just_after_its_pause_is_of_the_new_weights(engine: ServersEngine, mode: str):
    server = ask(engine)
    server.counts = [{}, {}, {"a": 0}]  # it is on its way when the pause begins
    server.pause(mode)
    engine.refresh(1)
    server.resume()
    server.answer("a")
    assert output(engine).versions == [(0, 1)]


def test_a_result_that_is_on_its_way_at_the_pause_is_of_the_old_weights(engine: ServersEngine):
    server = ask(engine)
    server.counts = [{}]
    assert server.was_asked.wait(30)
    server.answer_at_count = "a"
    server.pause("drain")
    engine.refresh(1)
    server.resume()
    assert output(engine).versions == [(0, 0)]


def test_a_request_that_goes_on_at_an_update_has_both_versions(engine: ServersEngine):
    server = ask(engine)
    server.counts = [{"a": 2}]
    server.pause("keep")
    engine.refresh(1)
    server.resume()
    server.answer("a")
    assert output(engine).versions == [(0, 0), (2, 1)]


def test_time_for_which_the_trainer_was_stopped_does_not_count_as_silence_of_its_servers(
    engine: ServersEngine, monkeypatch: pytest.MonkeyPatch
):
    clock = [0.0]
    monkeypatch.setattr("shoal.engines.servers.engine.monotonic", lambda: clock[0])
    server = ask(engine)
    monkeypatch.setattr(server, "responds", lambda: True)
    engine.poll(0.0)
    clock[0] += 3600.0  # Ctrl-Z, and an hour later fg
    assert engine.poll(0.0) == []
    for _ in range(29):
        clock[0] += 1.0
        assert engine.poll(0.0) == []
    clock[0] += 1.0
    with pytest.raises(EngineError, match="no completion within 30 s"):
        engine.poll(0.0)


@pytest.mark.parametrize("mended_before", [True, False])
def test_a_server_that_another_thread_starts_again_is_not_started_a_second_time_for_its_silence(
    engine: ServersEngine, monkeypatch: pytest.MonkeyPatch, mended_before: bool
):
    """Neither where it is back when its silence is looked into, nor where it comes back while that waits."""
    clock = [0.0]
    monkeypatch.setattr("shoal.engines.servers.engine.monotonic", lambda: clock[0])
    server = ask(engine)
    engine.went_down(server)
    monkeypatch.setattr(server, "responds", lambda: server not in engine.down)
    for _ in range(30):
        clock[0] += 1.0
        engine.poll(0.0)
    look = engine._mend_hanging

    def comes_back() -> None:
        if mended_before:
            engine.came_back(server)
            look()
            return
        with ThreadPoolExecutor(1) as thread:
            with engine.reviving:
                looking = thread.submit(look)
                engine.came_back(server)
            looking.result(30)

    monkeypatch.setattr(engine, "_mend_hanging", comes_back)
    clock[0] += 2.0
    assert engine.poll(0.0) == []
    assert engine.restarts_left == 0 and not engine.down
    server.answer("a")
    assert output(engine).token_ids == [1, 2, 3]
