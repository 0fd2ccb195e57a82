"""One server process for the tests that may share it, emptied before each; servers in this process for the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from api_server import ApiServer, serving
from starlette.testclient import TestClient

from shoal.rollout_api.server.access import Tokens
from shoal.rollout_api.server.app import build_app
from shoal.rollout_api.server.records import ServerOptions
from shoal.rollout_api.server.store import Store

REQUEST_SECONDS = 120


@pytest.fixture(scope="session")
def running_server(tmp_path_factory) -> Iterator[ApiServer]:
    """A server process with a limit of 4 MB on a request."""
    with serving(tmp_path_factory.mktemp("api"), "--max-request-mb", "4") as server:
        yield server
        assert server.process.poll() is None, "the server died:\n" + "".join(server.lines)


@pytest.fixture
def server(running_server) -> Iterator[httpx.Client]:
    """A client of the shared server, which has been emptied."""
    with httpx.Client(base_url=running_server.url, timeout=REQUEST_SECONDS) as client:
        client.get("/reset_data").raise_for_status()
        yield client


@pytest.fixture
def start(tmp_path) -> Iterator[Callable[..., TestClient]]:
    """Starts a server in this process on the test's store; starting again first ends the one before."""
    stack = ExitStack()

    def begin(
        options: ServerOptions | None = None, tokens: Tokens | None = None, store: Path = tmp_path / "groups.sqlite"
    ):
        stack.close()
        app = build_app(Store(store), options or ServerOptions(), tokens or Tokens())
        return stack.enter_context(TestClient(app))

    with stack:
        yield begin
