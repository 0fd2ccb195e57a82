"""SIGINT, SIGTERM and SIGHUP: finish the step, save, leave. A second one leaves at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from logging import getLogger
from types import FrameType

logger = getLogger(__name__)


class StopRequest:
    """Whether a signal has asked the run to stop."""

    def __init__(self) -> None:
        self.signal_name = ""
        self.terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

    def __bool__(self) -> bool:
        return bool(self.signal_name)

    def handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._leave_terminal()
        if self.signal_name and number == signal.SIGHUP:
            return  # shell and kernel both send one when a terminal closes
        if self.signal_name:
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name
        logger.warning("%s: finishing this step, then saving; once more to leave at once", self.signal_name)

    def _leave_terminal(self) -> None:
        """What is written to a terminal that has gone is an error, which must not cost the run its last checkpoint."""
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            for descriptor in self.terminals:
                os.dup2(nowhere.fileno(), descriptor)


@contextmanager
def graceful_stop() -> Iterator[StopRequest]:
    """Handles the signals inside the context. Outside the main thread they stay as they are, and so does a SIGHUP
    that is ignored already (nohup)."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    numbers = (signal.SIGINT, signal.SIGTERM, *(() if ignored else (signal.SIGHUP,)))
    previous = {number: signal.signal(number, request.handle) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
