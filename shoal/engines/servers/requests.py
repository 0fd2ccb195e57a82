"""From the engine's types to requests that are JSON and back, for servers and for vLLM in this process alike."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import count
from math import nan
from typing import Any

from shoal.engines.base import EngineOutput, Request, check_request
from shoal.types import Segment, StopReason

TEMPERATURE_1 = (
    "vLLM's prompt log-probs ignore the temperature, so log-probs of given tokens are those at temperature 1 only"
)


VLLM_LIMIT = "engine.vllm.max_model_len; shorten it, or raise that"


class RequestForm:
    """Makes and checks requests. `ends` are the ids that end a completion; `needed` the tokens of the longest prompt
    and completion; `limit` names what sets `max_model_len`, with what to do, for error lines."""

    def __init__(
        self, ends: Collection[int], tokenizer: Any, max_model_len: int, needed: int, limit: str = VLLM_LIMIT
    ) -> None:
        self.tokenizer = tokenizer
        self.needed = needed
        self.limit = limit
        self.ends = sorted(ends)
        self.max_model_len = max_model_len
        self.numbers = count()

    def sampling(self, request: Request) -> dict[str, Any]:
        """A request for a completion. Raises ValueError where it cannot be sampled."""
        check_request(request, self.max_model_len, f"of {self.limit}")
        sampling = request.sampling
        return {
            "id": request.id,
            "prompt": list(request.prompt_ids),
            "seed": request.seed,
            "max_tokens": min(sampling.max_new_tokens, self.max_model_len - len(request.prompt_ids)),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "stop": list(sampling.stop),
            "ends": self.ends,
        }

    def token(self, prompt_ids: Sequence[int]) -> dict[str, Any]:
        """A request for one token at temperature 1."""
        return {
            "id": f"one token {next(self.numbers)}",
            "prompt": list(prompt_ids),
            "seed": 0,
            "max_tokens": 1,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
            "stop": [],
            "ends": [],
        }

    def scoring(self, segments: Sequence[Segment]) -> list[dict[str, Any]]:
        """Requests for the log-probs of the segments' sampled ids; none for a segment without."""
        return [scoring_request(segment, f"score {next(self.numbers)}") for segment in segments if segment.sampled_ids]


def scoring_request(segment: Segment, id_: str) -> dict[str, Any]:
    """A request for the log-probs of one segment's sampled ids."""
    return {"id": id_, "prompt": segment.context_ids + segment.sampled_ids, "score_from": len(segment.context_ids)}


def scored(segments: Sequence[Segment], results: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Log-probs by segment, from the results of `RequestForm.scoring` in its order."""
    rows = iter(results)
    return [numbers(next(rows)["logprobs"]) if segment.sampled_ids else [] for segment in segments]


def numbers(logprobs: Sequence[float | None]) -> list[float]:
    """Log-probs as they were before they became JSON, which has null for what is not finite."""
    return [nan if one is None else one for one in logprobs] if None in logprobs else list(logprobs)  # type: ignore[arg-type]


def output_of(result: Mapping[str, Any], versions: list[tuple[int, int]]) -> EngineOutput:
    """The engine's form of a result. A server that knows the version of each token says it itself."""
    versions = [(start, version) for start, version in result.get("versions", versions)]
    if "error" in result:
        return EngineOutput(result["id"], [], [], StopReason.ERROR, versions, error=result["error"])
    tokens = list(result["tokens"])
    return EngineOutput(result["id"], tokens, numbers(result["logprobs"]), StopReason(result["reason"]), versions)


def stamp(versions: list[tuple[int, int]], start: int, version: int) -> None:
    """Says that tokens from `start` on are sampled with `version`."""
    if versions and versions[-1][0] == start:
        versions[-1] = (start, version)
    else:
        versions.append((start, version))
