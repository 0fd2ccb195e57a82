"""POST /generate as vLLM's small API server speaks it, and as Atropos environments ask for tokens.

A request is `{"prompt": {"prompt_token_ids": [...]}, "max_tokens": ..., "temperature": ..., "seed": ..., "n": ...}`;
the reply has, for each completion, `text`, `finish_reasons`, `token_ids`, `logprobs` (a list over positions of
`[{token id: log-prob}]`) and `versions` (runs of first token and weights version). In place of `n` and `seed`, `seeds`
gives each completion its own.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from shoal.engines.base import EngineOutput, SamplingParams
from shoal.types import StopReason

Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class TokenPrompt(BaseModel):
    """A prompt as token ids."""

    prompt_token_ids: Ids


class GenerateRequest(BaseModel):
    """The body of POST /generate. Fields that are not known are refused, not ignored."""

    model_config = ConfigDict(extra="forbid")

    prompt: TokenPrompt | str
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=1024)] = 1
    seed: int | None = None
    seeds: list[int] | None = None
    max_tokens: Annotated[int, Field(ge=1)] = 16
    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1)] = 0
    stop: list[str] | str | None = None
    include_stop_str_in_output: bool = True
    logprobs: int | None = None
    stream: bool = False

    def seed_of_each(self) -> list[int]:
        """One seed for each completion: those given, or the one given and those that follow it, or new ones."""
        first = secrets.randbits(63) if self.seed is None else self.seed
        return self.seeds or [first + index for index in range(self.n)]

    def sampling(self) -> SamplingParams:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return SamplingParams(self.max_tokens, self.temperature, self.top_p, max(self.top_k, 0), stop)


def reply(prompt: Sequence[int], outputs: Sequence[EngineOutput], decode: Callable[[list[int]], str]) -> dict[str, Any]:
    """What POST /generate answers."""
    return {
        "text": [decode(output.token_ids) for output in outputs],
        "finish_reasons": [_finish_reason(output) for output in outputs],
        "prompt_token_ids": list(prompt),
        "token_ids": [output.token_ids for output in outputs],
        "logprobs": [
            [[{id_: logprob}] for id_, logprob in zip(output.token_ids, output.logprobs, strict=True)]
            for output in outputs
        ],
        "versions": [output.versions for output in outputs],
    }


def _finish_reason(output: EngineOutput) -> str:
    return {StopReason.STOP: "stop", StopReason.LENGTH: "length"}.get(output.stop_reason, "abort")
