"""How one engine process is paused for new weights, as its client sees it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from shoal.engines.processes.engine import ProcessServer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    """One that writes down what it is asked, and what its owner is told."""
    log: list[str] = []
    owner: Any = SimpleNamespace(
        timeout=1.0,
        hold=lambda server: log.append("held"),
        resumed=lambda server: log.append("resumed"),
        paused_with=lambda server, counts: None,
    )
    made = ProcessServer(owner, "http://127.0.0.1:9", "policy")
    monkeypatch.setattr(made, "_post", lambda path, what, body: log.append(path))
    monkeypatch.setattr(made, "log", log, raising=False)
    return made


def test_a_process_without_requests_is_only_asked_nothing_while_it_takes_weights(server: Any):
    server.pause("drain")
    server.resume()
    assert server.log == ["held", "resumed"]


def test_a_process_with_requests_is_paused_and_goes_on(server: Any):
    server.in_flight = 1
    server.pause("keep")
    server.in_flight = 0  # they ended meanwhile
    server.resume()
    assert server.log == ["held", "held", "/shoal/pause", "/shoal/resume", "resumed"]
