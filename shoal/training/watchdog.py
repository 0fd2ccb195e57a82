"""Says who waits for whom: where nothing moved for a while, and on SIGUSR1."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from time import monotonic
from types import FrameType

LOOKS = 4  # in the time after which a stall is said


@contextmanager
def watchdog(standing: Callable[[], str], say: Callable[[str], None], seconds: float) -> Iterator[None]:
    """Beside the block: says `standing` once where it did not change for `seconds`, again after as long, and whenever
    SIGUSR1 comes. The signal is heeded where this is the main thread."""
    end, asked = Event(), Event()

    def look() -> None:
        last, since = "", monotonic()
        while not end.is_set():
            wanted = asked.wait(seconds / LOOKS)
            asked.clear()
            if end.is_set():
                return
            now, text = monotonic(), standing()
            if wanted:
                say(text)
            elif text != last:
                last, since = text, now
            elif now - since >= seconds:
                say(f"nothing has moved for {now - since:.0f} s (run.stall_warning={seconds:g}): {text}")
                since = now

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()

    main = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGUSR1")
    before = signal.signal(signal.SIGUSR1, ask) if main else None
    thread = Thread(target=look, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGUSR1, before)
        end.set()
        asked.set()
        thread.join(1.0)
