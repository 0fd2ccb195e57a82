"""Servers that are gone for good with their machine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from threading import Event
from typing import Any

import httpx
import pytest

from shoal.engines.base import Request, SamplingParams
from shoal.engines.servers.engine import ServersEngine
from shoal.engines.servers.requests import RequestForm
from shoal.engines.servers.server import Server
from shoal.errors import EngineError, ServerGone


class StandIn(Server):
    """Answers at once, until its machine is gone."""

    option = timeout_key = "a stand-in"

    def __init__(self, owner: ServersEngine, number: int) -> None:
        super().__init__(owner, f"http://127.0.0.1:{number}", "none")
        self.gone = Event()
        self.answered: list[str] = []

    async def ask(self, client: Any, requests: Sequence[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
        for one in requests:
            if self.gone.is_set():
                raise httpx.ConnectError("gone")
            self.answered.append(one["id"])
            yield {"id": one["id"], "tokens": [1], "logprobs": [0.0], "reason": "stop"}

    async def metrics(self, client: Any) -> dict[str, float]:
        return {}

    def alive(self) -> bool:
        return not self.gone.is_set()

    def responds(self) -> bool:
        return self.alive()

    def come_back(self) -> None:
        raise ServerGone("the run goes on without its node")


@pytest.fixture
def engine() -> Iterator[ServersEngine]:
    form = RequestForm([0], None, 64, 64)  # type: ignore[arg-type]
    made = ServersEngine(
        form, timeout=30.0, restarts=9, open_servers=lambda owner: [StandIn(owner, 1), StandIn(owner, 2)]
    )
    made.version = 0
    yield made
    made.close()


def finished(engine: ServersEngine, count: int) -> list[str]:
    engine.submit([Request(f"{name}", (5,), 1, SamplingParams(8)) for name in range(count)])
    found: list[str] = []
    while engine.in_flight:
        found += [one.request_id for one in engine.poll(0.1)]
    return sorted(found)


def test_what_a_server_owed_that_is_gone_the_others_give_and_it_is_asked_no_more(engine: ServersEngine):
    one, other = engine.servers
    assert isinstance(one, StandIn) and isinstance(other, StandIn)
    one.gone.set()
    assert finished(engine, 6) == [str(name) for name in range(6)]
    assert engine.servers == engine.replicas == [other]
    assert (one.answered, other.in_flight) == ([], 0)
    assert finished(engine, 3) == ["0", "1", "2"]
    assert len(other.answered) == 9
    assert engine.revive() == 1


def test_the_last_server_that_is_gone_ends_the_run(engine: ServersEngine):
    for one in engine.servers:
        assert isinstance(one, StandIn)
        one.gone.set()
    with pytest.raises(EngineError, match="was the last one: the run goes on without its node"):
        finished(engine, 2)
