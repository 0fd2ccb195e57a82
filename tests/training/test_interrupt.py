import os
import pty
import signal
from collections.abc import Iterator
from time import sleep

import pytest

from shoal.training.interrupt import graceful_stop


@pytest.fixture
def hangup() -> Iterator[None]:
    """SIGHUP as in a terminal, also where the tests themselves run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_for_a_stop_and_a_second_one_leaves_at_once(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with graceful_stop() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_a_closed_terminal_asks_for_a_stop_and_its_second_signal_changes_nothing(hangup: None) -> None:
    before = signal.getsignal(signal.SIGHUP)
    with graceful_stop() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.signal_name == "SIGHUP"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGHUP) is before


def test_nohup_stays_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with graceful_stop() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_is_said_after_the_terminal_has_gone_is_no_error(hangup: None) -> None:
    child, terminal = pty.fork()
    if child == 0:  # the process on the terminal that goes
        status = 1
        try:
            with graceful_stop() as stop:
                os.write(1, b"ready\n")
                while not stop:
                    sleep(0.01)  # a pause would wait for ever for a signal that came just before it
                os.write(2, b"saving\n")
                status = 7
        finally:
            os._exit(status)
    assert os.read(terminal, 5) == b"ready"
    os.close(terminal)  # the kernel sends SIGHUP
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
