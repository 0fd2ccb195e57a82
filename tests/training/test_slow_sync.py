"""A weight sync whose publications end later than they are asked for."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

import pytest
from small_runs import Configure, rows

from shoal import train
from shoal.errors import EngineError
from shoal.weight_sync.base import PublishHandle
from shoal.weight_sync.in_place import InPlaceSync

publish_now = InPlaceSync.publish


class Later(PublishHandle):
    """Publishes when it is waited for, and not before: an engine nobody waits for keeps the old version."""

    def __init__(self, sync: InPlaceSync, version: int) -> None:
        super().__init__(version, Future())
        self.sync = sync

    def wait(self, deadline: float | None = None) -> dict[str, float]:
        assert deadline is not None, "a wait without a deadline"
        self.future.set_result(publish_now(self.sync, self.version).wait())
        return super().wait(deadline)


def test_a_run_waits_for_the_engine_wherever_it_needs_the_new_weights(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    train(configure("run.steps=3"), tmp_path / "at_once")
    monkeypatch.setattr(InPlaceSync, "publish", lambda sync, version, *, now=False: Later(sync, version))
    train(configure("run.steps=3"), tmp_path / "later")
    assert rows(tmp_path / "later") == rows(tmp_path / "at_once")


def test_a_publication_that_fails_later_ends_the_run_with_its_error(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def publish(sync: InPlaceSync, version: int, *, now: bool = False) -> PublishHandle:
        if version == 0:
            return publish_now(sync, version)
        failed: Future[dict[str, float]] = Future()
        failed.set_exception(EngineError("vLLM does not answer"))
        return PublishHandle(version, failed)

    monkeypatch.setattr(InPlaceSync, "publish", publish)
    with pytest.raises(EngineError, match="vLLM does not answer"):
        train(configure("run.steps=3"), tmp_path)
    assert all(row["step"] == 0 for row in rows(tmp_path))


def test_a_publication_that_never_ends_is_waited_for_until_the_deadline_only():
    with pytest.raises(EngineError, match=r"does not hold version 7 after 0.1 s; weight_sync.timeout"):
        PublishHandle(7, Future()).wait(0.1)
