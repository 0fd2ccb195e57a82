"""Asking over HTTP again: which failures pass, how long to go on, how pauses grow, and what is said meanwhile."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

if TYPE_CHECKING:
    from tenacity import RetryCallState

T = TypeVar("T")
Say = Callable[[str, float], None]
"""Takes why it has to wait, and the seconds that have gone by."""


class NotYet(Exception):
    """A try failed, and another may succeed. `asked`: seconds that the server wants to be left alone."""

    def __init__(self, why: str, asked: float = 0.0) -> None:
        super().__init__(why)
        self.why = why
        self.asked = asked


class GaveUp(Exception):
    """No try succeeded; `why` is the last one's reason, `seconds` how long it took."""

    def __init__(self, why: str, seconds: float) -> None:
        super().__init__(why)
        self.why = why
        self.seconds = seconds


@dataclass(frozen=True)
class RetryPolicy:
    """When a request is sent again.

    Args:
        seconds: After which no further try is made.
        tries: How many are made at most; 0 for any number.
        first_pause: Seconds before the second try; each further pause is `growth` times the one before.
        longest_pause: Seconds that no pause of ours is longer than.
        longest_asked: The same for pauses that a server asks for (Retry-After).
        say_every: Seconds between two words on a wait.
        busy: Statuses after which another try may succeed.
    """

    seconds: float = inf
    tries: int = 0
    first_pause: float = 0.05
    growth: float = 1.5
    longest_pause: float = 2.0
    longest_asked: float = 30.0
    say_every: float = 10.0
    busy: frozenset[int] = frozenset({408, 429, 502, 503, 504})

    def call(self, once: Callable[[], T], say: Say) -> T:
        """What `once` gives, tried again for as long as it raises NotYet.

        Raises:
            GaveUp: it went on doing so. Other exceptions of `once` pass through.
        """
        from tenacity import Retrying  # noqa: PLC0415 runs that ask nobody do without it

        found: T = Retrying(**self._options(say))(once)
        return found

    async def wait_for(self, once: Callable[[], Awaitable[T]], say: Say) -> T:
        """The same for a coroutine function."""
        from tenacity import AsyncRetrying  # noqa: PLC0415 as above

        found: T = await AsyncRetrying(**self._options(say))(once)
        return found

    def refuse_busy(self, reply: httpx.Response, why: str) -> None:
        """Raises NotYet where the reply's status is one that passes."""
        if reply.status_code in self.busy:
            raise NotYet(why, retry_after(reply))

    def _options(self, say: Say) -> dict[str, Any]:
        from tenacity import (  # noqa: PLC0415 as above
            retry_if_exception_type,
            stop_after_attempt,
            stop_after_delay,
        )

        said = monotonic()

        def pause(state: RetryCallState) -> float:
            failure = _failure(state)
            # The power is bounded: waits without end would overflow it.
            own = min(self.first_pause * self.growth ** min(state.attempt_number - 1, 64), self.longest_pause)
            left = max(self.seconds - (state.seconds_since_start or 0.0), 0.01)
            return min(max(own, min(failure.asked, self.longest_asked)), left)

        def before_sleep(state: RetryCallState) -> None:
            nonlocal said
            if monotonic() - said > self.say_every:
                said = monotonic()
                say(_failure(state).why, state.seconds_since_start or 0.0)

        def give_up(state: RetryCallState) -> None:
            failure = _failure(state)
            raise GaveUp(failure.why, state.seconds_since_start or 0.0) from (failure.__cause__ or failure)

        ends: Any = stop_after_delay(self.seconds)
        if self.tries:
            ends = ends | stop_after_attempt(self.tries)
        return {
            "retry": retry_if_exception_type(NotYet),
            "stop": ends,
            "wait": pause,
            "before_sleep": before_sleep,
            "retry_error_callback": give_up,
        }


def retry_after(reply: httpx.Response) -> float:
    """Seconds that the server asks to wait; 0 where it says nothing, or a date."""
    given = reply.headers.get("Retry-After", "")
    return float(given) if given.replace(".", "", 1).isdigit() else 0.0


def _failure(state: RetryCallState) -> NotYet:
    assert state.outcome is not None
    failure = state.outcome.exception()
    assert isinstance(failure, NotYet)
    return failure
