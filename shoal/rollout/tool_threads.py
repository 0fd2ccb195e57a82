"""Threads for tools: one a call, so that a tool that hangs holds up nothing but itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from threading import Thread
from typing import Any


async def in_own_thread(call: Callable[[], Any], name: str, timeout: float) -> Any:
    """What `call` gives, or raises, run in a daemon thread.

    Python cannot end a thread: one whose call hangs is left behind, and keeps neither others nor the process from
    going on.

    Raises:
        TimeoutError: the call has not returned after `timeout` seconds.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: Exception | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    def run() -> None:
        result, failure = None, None
        try:
            result = call()
        except Exception as error:  # noqa: BLE001 raised again where it is awaited
            failure = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, failure)

    Thread(target=run, name=f"tool {name}", daemon=True).start()
    return await asyncio.wait_for(future, timeout)
