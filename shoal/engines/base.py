"""The engine's contract: requests in, completions out as they finish."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from shoal.types import Segment, StopReason


@dataclass(frozen=True)
class SamplingParams:
    """How to sample. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 keep every token.

    `stop` strings end a completion and stay in its tokens; so does an end-of-sequence id.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """One completion to sample. `seed` alone decides its random numbers, whatever it is batched with.

    `group` is a hint: requests of one group have the same prompt, whose prefill may be shared.
    """

    id: str
    prompt_ids: tuple[int, ...]
    seed: int
    sampling: SamplingParams
    group: str = ""


@dataclass
class EngineOutput:
    """A finished request. `logprobs` are those of the distribution that was sampled.

    `versions` are runs of (index of first token, weight version). `error` says what failed under StopReason.ERROR.
    """

    request_id: str
    token_ids: list[int]
    logprobs: list[float]
    stop_reason: StopReason
    versions: list[tuple[int, int]] = field(default_factory=list)
    error: str = ""


class Engine(ABC):
    """Turns prompts into tokens and log-probs. `version` is the weights that it holds."""

    version: int = -1

    @property
    @abstractmethod
    def max_length(self) -> int:
        """Most tokens of a prompt and its completion."""

    @abstractmethod
    def submit(self, requests: Sequence[Request]) -> None:
        """Queues requests; returns at once.

        Raises:
            ValueError: an id is already queued, a prompt is empty or longer than the engine can hold.
        """

    @abstractmethod
    def completed(self) -> Iterator[EngineOutput]:
        """Yields outputs as they finish, until nothing is queued or running. Requests may be submitted meanwhile."""

    @abstractmethod
    def abort(self, ids: Sequence[str]) -> None:
        """Ends requests early: they come out with what they have and StopReason.ABORT. Unknown ids are ignored."""

    @abstractmethod
    def logprobs(self, segments: Sequence[Segment], temperature: float = 1.0) -> list[list[float]]:
        """Log-probs of each segment's sampled ids after its context, by the weights held now."""

    def generate(
        self, requests: Sequence[Request], finished: Callable[[EngineOutput], None] | None = None
    ) -> list[EngineOutput]:
        """Submits and waits: outputs in the order of the requests; `finished` is called with each as it comes. The
        engine must be idle before."""
        self.submit(requests)
        outputs = {}
        for output in self.completed():
            outputs[output.request_id] = output
            if finished is not None:
                finished(output)
        return [outputs[request.id] for request in requests]

    def statistics(self) -> dict[str, float]:
        """Counters since the last call, by metric name (tokens, seconds, rows ...); resets them."""
        return {}

    def close(self) -> None:
        """Frees what the engine holds; ends what it started."""
