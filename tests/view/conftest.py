"""A run folder, its index in a cache of its own, and a client of the page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from view.run_folders import small_run

from shoal.view.access import Visitors
from shoal.view.app import build_app


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes of these tests lie in no one's cache."""
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return small_run(tmp_path / "run")


@pytest.fixture
def client() -> Callable[..., TestClient]:
    """Opens a page over paths, as a browser on this machine would."""

    def open_page(*paths: Path, token: str = "") -> TestClient:
        return TestClient(build_app(paths, Visitors(token)), base_url="http://127.0.0.1:7600")

    return open_page


@pytest.fixture
def ask(client: Callable[..., TestClient]) -> Callable[..., Any]:
    """An answer about the one run in a folder."""

    def answer(folder: Path, name: str, **given: Any) -> Any:
        reply = client(folder).get(f"/api/{name}", params={"run": folder.name, **given})
        assert reply.status_code == 200, reply.text
        return reply.json()

    return answer
