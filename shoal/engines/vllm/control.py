"""What a weight sync asks of vLLM, in the same words whether it runs in this process or behind HTTP."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shoal.types import Segment

PAUSE_MODES = ("drain", "keep", "abort")
"""What an update does to requests in flight: they finish first; they go on after it; they end and are asked again."""


class VllmControl(ABC):
    """One vLLM: a server, or the engine in this process. A vLLM engine has one for each server, as `controls`.

    Every call has a deadline. All raise EngineError, which names the server, what was asked of it, and the remedy.
    """

    name: str = "vLLM"  # as error lines call it
    model: str = ""  # folder or Hub name that it was started with
    tensor_parallel: int = 1
    max_lora_rank: int = 0  # 0: no adapters
    launched: bool = True  # False: someone else's server, which cannot be restarted from here

    @abstractmethod
    def call_workers(self, method: str, *arguments: Any) -> list[Any]:
        """Calls a method of `ShoalWorker` (vllm_worker.py) in every tensor-parallel worker; the results by rank.

        Arguments and results are JSON values.
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
    def logprobs(self, segments: Sequence[Segment]) -> list[list[float]]:
        """Log-probs of each segment's sampled ids after its context, by this one vLLM. Requests in flight go on."""

    @abstractmethod
    def sample_token(self, prompt_ids: Sequence[int]) -> tuple[int, float]:
        """One token sampled at temperature 1, through the prefix cache as rollouts are, and its log-prob."""

    @abstractmethod
    def cached_tokens(self, prompt_ids: Sequence[int]) -> int:
        """Samples a token in the same way; how many tokens of the prompt the prefix cache held. 0 where it is off, or
        where the server does not say."""

    @abstractmethod
    def restart(self, model: Path) -> None:
        """Ends the server and starts it on `model`, on the same port; returns when it is healthy."""
