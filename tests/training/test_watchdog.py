"""Who waits for whom is said on SIGUSR1 and where nothing moves, and the signal's handler is put back."""

from __future__ import annotations

import os
import signal
from itertools import count
from queue import Queue

from shoal.training.watchdog import watchdog


def test_the_signal_is_answered_at_once():
    said: Queue[str] = Queue()
    before = signal.getsignal(signal.SIGUSR1)
    with watchdog(lambda: "step 3: train", said.put, 1e5):
        os.kill(os.getpid(), signal.SIGUSR1)
        assert said.get(timeout=10) == "step 3: train"
    assert signal.getsignal(signal.SIGUSR1) == before


def test_what_stands_still_is_said_again_and_again_and_what_moves_is_not():
    still: Queue[str] = Queue()
    moving: list[str] = []
    numbers = count()
    with watchdog(lambda: "waits", still.put, 0.1), watchdog(lambda: str(next(numbers)), moving.append, 0.1):
        first, second = still.get(timeout=10), still.get(timeout=10)
    assert first.startswith("nothing has moved for") and first.endswith(": waits")
    assert second.endswith(": waits")
    assert moving == []
