"""What a weight sync asks of an engine's replica, whether that runs in this process or behind HTTP."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

from shoal.engines.base import Replica

PAUSE_MODES = ("drain", "keep", "abort")
"""What an update does to requests in flight: they finish first; they go on after it; they end and are asked again."""


class Control(Replica):
    """A replica that is given its weights: a server, or vLLM in this process. An engine has one for each server.

    Every call has a deadline. All raise EngineError, which names the server, what was asked of it, and the remedy.
    """

    model: str = ""  # folder or Hub name that it was started with
    tensor_parallel: int = 1
    max_lora_rank: int = 0  # 0: no adapters
    launched: bool = True  # False: someone else's server, which cannot be restarted from here

    @abstractmethod
    def call_workers(self, method: str, *arguments: Any) -> list[Any]:
        """Calls a method in each of its workers, the processes that hold weights; the results by rank, dicts of JSON.

        All have `rank` and the `version` held. Methods: `shoal_status()`; `shoal_hold(version)`, the weights in memory
        are of this version; `shoal_join(host, port, name, first_rank, world, seconds)`, `shoal_receive(version, rows,
        bucket, delta)` and `shoal_receive_delta(version, rows)`, through a process group; `shoal_share(folder, url,
        adopt)`, through shared memory.
        """

    @abstractmethod
    def pause(self, mode: str) -> None:
        """Stops generation (`mode` is one of PAUSE_MODES) and returns once no weight is being read."""

    @abstractmethod
    def resume(self) -> None:
        """Goes on generating. The prefix cache has been reset by whoever changed weights."""

    @abstractmethod
    def reset_prefix_cache(self) -> None:
        """Forgets the keys and values that older weights gave."""

    @abstractmethod
    def load_adapter(self, name: str, folder: Path, version: int) -> None:
        """Takes the PEFT adapter in `folder` as version `version`; requests use it from now on."""

    @abstractmethod
    def restart(self, model: Path) -> None:
        """Ends the server and starts it on `model`, on the same port; returns when it is healthy."""
