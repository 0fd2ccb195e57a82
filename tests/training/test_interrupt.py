import os
import signal

import pytest

from shoal.training.interrupt import graceful_stop


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
