"""The server and the environment that a run starts: one that dies is started again."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.errors import RolloutApiError
from shoal.rollout_api.trainer.launch import Companion, Companions


@pytest.fixture
def companions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Companions]:
    """Processes that only sleep, with two restarts."""
    program = tmp_path / "sleeper"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    started = Companions("http://127.0.0.1:0", "story", "http://127.0.0.1:1", tmp_path / "run", restarts=2)
    yield started
    started.stop()


def kill(companion: Companion) -> None:
    os.kill(companion.process.pid, signal.SIGKILL)
    companion.process.wait(60)


def test_one_that_dies_is_started_again_within_the_restarts(companions: Companions):
    pids = {companion.process.pid for companion in companions.running}
    for companion in companions.running:
        kill(companion)
        companions.check()
        assert companion.process.poll() is None
        pids.add(companion.process.pid)
    assert len(pids) == 4
    kill(companions.running[1])
    with pytest.raises(RolloutApiError, match="the environment story has ended with status -9"):
        companions.check()


def test_one_that_refuses_what_it_was_told_is_not_started_again(companions: Companions, tmp_path: Path):
    program = tmp_path / "refuses"
    program.write_text("#!/bin/sh\necho no such environment\nexit 2\n")
    program.chmod(0o755)
    sys.executable = str(program)  # put back by the fixture's monkeypatch
    kill(companions.running[1])
    companions.check()
    companions.running[1].process.wait(60)
    with pytest.raises(RolloutApiError, match="ended with status 2: no such environment"):
        companions.check()
    assert companions.restarts_left == 1


def test_both_are_ended_where_the_second_cannot_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stopped: list[str] = []
    monkeypatch.setattr(Companion, "stop", lambda self: stopped.append(self.name))

    def start(self: Companion) -> None:
        if "environment" in self.name:
            raise OSError("no more processes")

    monkeypatch.setattr(Companion, "_start", start)
    with pytest.raises(OSError, match="no more processes"):
        Companions("http://127.0.0.1:0", "story", "http://127.0.0.1:1", tmp_path, restarts=0)
    assert stopped == ["the server of scored groups"]
