"""Parts of a run are closed in order."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.training.parts import Parts


class Recorded:
    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def close(self) -> None:
        self.log.append(self.name)
        if self.name == "scorer":
            raise RuntimeError("the scorer does not close")


def test_rollouts_end_before_the_engine_that_they_ask_and_that_before_the_learner_whatever_fails() -> None:
    log: list[str] = []
    parts: dict[str, Any] = {
        name: Recorded(name, log) for name in ("rollouts", "scorer", "sync", "engine", "learner", "task")
    }
    with pytest.raises(RuntimeError, match="the scorer does not close"):
        Parts(runtime=None, decode=str, **parts).close()  # type: ignore[arg-type]
    assert log == ["rollouts", "scorer", "sync", "engine", "learner"]
