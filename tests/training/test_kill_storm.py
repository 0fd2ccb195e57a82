"""SIGKILL and SIGSTOP of engine processes, reward workers and the trainer of an asynchronous run, at random moments.

SHOAL_STORM=30 makes it a long one, SHOAL_STORM_SEED another one; -s shows what happens.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from storm import ENGINE, KINDS, Storm, moments, prove_trained_once

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are found by their environment"),
]

MOMENTS = int(os.environ.get("SHOAL_STORM", len(KINDS)))
SEED = int(os.environ.get("SHOAL_STORM_SEED", "1"))
logger = logging.getLogger(__name__)


@pytest.fixture
def storm(tiny_model: Path, tmp_path: Path) -> Iterator[Callable[..., Storm]]:
    made: list[Storm] = []

    def make(*overrides: str) -> Storm:
        made.append(Storm(tmp_path, tiny_model, *overrides, say=logger.warning))
        return made[-1]

    yield make
    for one in made:
        one.kill()


@pytest.mark.timeout(300 + 180 * MOMENTS)
def test_each_prompt_is_trained_once_and_no_process_is_left_whatever_is_killed(storm: Callable[..., Storm]) -> None:
    run = storm(f"weight_sync={'broadcast' if SEED % 2 else 'shared'}")
    run.weather(moments(SEED, MOMENTS))
    prove_trained_once(run.folder, run.last_step(), 2)


@pytest.mark.timeout(600)
def test_an_engine_that_hangs_and_may_not_be_started_again_ends_the_run_with_its_name(
    storm: Callable[..., Storm],
) -> None:
    run = storm("weight_sync=broadcast", "engine.restarts=0")
    run.start()
    run.goes_on()
    run.random.choice(run.children(ENGINE)).send_signal(signal.SIGSTOP)
    assert run.ended() == 1
    last = run.log_tail().splitlines()[-1]
    assert "shoal: error: engine process http://127.0.0.1:" in last
    assert "died or hangs" in last and "engine.restarts are used up; its log: " in last
