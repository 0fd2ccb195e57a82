"""The engine's contract: requests in, completions out as they finish."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from shoal.types import Place, Segment, StopReason

WAIT_SECONDS = 1.0


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

    @property
    def truncated(self) -> bool:
        """Whether the distribution that is sampled from lacks some tokens. Greedy sampling asks for the likeliest."""
        return bool(self.temperature and (self.top_k or self.top_p < 1))


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


def check_request(request: Request, most: int, limit: str) -> None:
    """Refuses a request that no engine can sample, or whose prompt fills `most` tokens; `limit` names what sets them,
    with what to do.

    Raises:
        ValueError: in one line, with the request's id.
    """
    prompt = len(request.prompt_ids)
    if prompt == 0:
        raise ValueError(f"request {request.id}: the prompt is empty; give it one token at least")
    if request.sampling.max_new_tokens < 1:
        raise ValueError(f"request {request.id}: max_new_tokens is {request.sampling.max_new_tokens}, not 1 or more")
    if prompt >= most:
        raise ValueError(f"request {request.id}: its prompt of {prompt} tokens fills all {most} {limit}")


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


class Replica(ABC):
    """One holder of the weights among those of an engine: a server, or a vLLM in this process.

    Every call has a deadline, and raises EngineError, which names the replica, what was asked of it, and the remedy.
    """

    name: str  # as error lines call it

    @abstractmethod
    def logprobs(self, segments: Sequence[Segment]) -> list[list[float]]:
        """Log-probs of each segment's sampled ids after its context, by this replica. Requests in flight go on."""

    @abstractmethod
    def sample_token(self, prompt_ids: Sequence[int]) -> tuple[int, float]:
        """One token sampled at temperature 1, through the prefix cache as rollouts are, and its log-prob."""

    @abstractmethod
    def cached_tokens(self, prompt_ids: Sequence[int]) -> int:
        """Samples a token in the same way; how many tokens of the prompt the prefix cache held. 0 where there is none,
        or where the replica does not say."""


class Engine(ABC):
    """Turns prompts into tokens and log-probs. `version` is the weights that it holds."""

    version: int = -1
    replicas: Sequence[Replica] = ()
    """Those that hold weights of their own, to be asked one by one; none where the engine reads the learner's."""

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

    @property
    @abstractmethod
    def in_flight(self) -> int:
        """Requests submitted whose outputs have not been given out yet."""

    @abstractmethod
    def poll(self, timeout: float) -> list[EngineOutput]:
        """Outputs that have finished since the last call; waits, or works, for at most about `timeout` seconds for one.

        An engine in this process does its work in here, a little at a time. Empty at once where nothing is in flight.

        Raises:
            EngineError: the engine failed, or nothing came of it within its own deadline.
        """

    @abstractmethod
    def abort(self, ids: Sequence[str]) -> None:
        """Ends requests early: they come out with what they have and StopReason.ABORT. Unknown ids are ignored."""

    @abstractmethod
    def logprobs(self, segments: Sequence[Segment], temperature: float = 1.0) -> list[list[float]]:
        """Log-probs of each segment's sampled ids after its context, by the weights held now."""

    def generate(self, requests: Sequence[Request]) -> list[EngineOutput]:
        """Submits and waits: outputs in the order of the requests. The engine must be idle before."""
        self.submit(requests)
        outputs: dict[str, EngineOutput] = {}
        while self.in_flight:
            outputs |= {output.request_id: output for output in self.poll(WAIT_SECONDS)}
        return [outputs[request.id] for request in requests]

    def statistics(self) -> dict[str, float]:
        """Counters since the last call, by metric name (tokens, seconds, rows ...); resets them."""
        return {}

    def places(self) -> list[Place]:
        """Its parts, for people: see `Place`."""
        return [("", "engine", f"{counted(self.in_flight, 'request')} in flight")]

    def close(self) -> None:
        """Frees what the engine holds; ends what it started."""


def counted(count: int, what: str) -> str:
    """`1 request`, `2 requests`."""
    return f"{count} {what}{'s' * (count != 1)}"
