"""Several calls at once that depend on each other: the first that fails ends the wait for the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from queue import Empty, Queue
from threading import Thread
from time import monotonic
from typing import Any

from shoal.errors import EngineError


def run_together(calls: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, Any]:
    """Runs each call in a thread of its own; returns their results by name.

    A call that hangs is left behind in its thread, which does not keep the process alive.

    Raises:
        EngineError: a call failed, named with its error, or is not done after `seconds`.
    """
    done: Queue[tuple[str, Any, Exception | None]] = Queue()

    def run(name: str, call: Callable[[], Any]) -> None:
        try:
            done.put((name, call(), None))
        except Exception as error:  # noqa: BLE001 - raised again in the thread that waits
            done.put((name, None, error))

    for name, call in calls.items():
        Thread(target=run, args=(name, call), name=f"weight sync: {name}", daemon=True).start()
    deadline = monotonic() + seconds
    results: dict[str, Any] = {}
    while len(results) < len(calls):
        try:
            name, result, error = done.get(timeout=max(deadline - monotonic(), 0))
        except Empty:
            waiting = ", ".join(name for name in calls if name not in results)
            raise EngineError(f"no word after {seconds:g} s from: {waiting}") from None
        if error is not None:
            raise EngineError(f"{name}: {' '.join(str(error).split())[:300]}") from error
        results[name] = result
    return results
