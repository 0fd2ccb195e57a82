"""Asking an engine behind HTTP for tokens: vLLM's small API server (`/generate`), Shoal's engine, or vLLM's OpenAI API.

Prompts and completions are token ids all the way: an endpoint that gives text alone cannot be trained with.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from logging import getLogger
from time import monotonic
from typing import Any

import httpx

from shoal.engines.base import EngineOutput, SamplingParams
from shoal.errors import EngineError, RequestRefused
from shoal.http import GaveUp, NotYet, RetryPolicy
from shoal.types import StopReason

logger = getLogger(__name__)

TOKEN_VARIABLE = "SHOAL_ENGINE_TOKEN"
MISTAKEN = (401, 403, 404, 405)  # no other request would fare better
REMEDY = "give --engine the address of a vLLM server or of Shoal's engine"
REASONS = {"stop": StopReason.STOP, "length": StopReason.LENGTH}


@dataclass
class _Pending:
    """Completions of one prompt that were asked for in one turn of the event loop: they go in one request."""

    context_ids: tuple[int, ...]
    sampling: SamplingParams
    seeds: list[int] = field(default_factory=list)
    futures: list[asyncio.Future[EngineOutput]] = field(default_factory=list)


class EngineClient:
    """The model of an environment: `sample` asks `url`.

    An address that ends in /v1 is an OpenAI API, any other has `/generate`. A server that is not there, is paused or
    gives a completion up is asked again, with the same seed, until `timeout` seconds have gone by without an answer.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self.url = url.rstrip("/")
        self.openai = self.url.endswith("/v1")
        self.timeout = timeout
        self.policy = RetryPolicy(seconds=timeout, first_pause=0.1)
        token = os.environ.get(TOKEN_VARIABLE)
        self.http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(timeout, connect=5.0),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            trust_env=False,
        )
        self.accepts: set[str] | None = None
        self.model_name = ""
        self.pending: dict[tuple[tuple[int, ...], SamplingParams], _Pending] = {}
        self.running: set[asyncio.Task[list[EngineOutput]]] = set()

    async def sample(
        self, context_ids: Sequence[int], seed: int, sampling: SamplingParams, *, group: str = ""
    ) -> EngineOutput:
        """What the model writes after these ids.

        Raises:
            EngineError: no answer within the deadline, or one that cannot be used.
            RequestRefused: the server is there and refuses this prompt.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[EngineOutput] = loop.create_future()
        key = (tuple(context_ids), sampling)
        if key not in self.pending:
            self.pending[key] = _Pending(*key)
            loop.call_soon(self._send, key)
        self.pending[key].seeds.append(seed)
        self.pending[key].futures.append(future)
        return await future

    async def close(self) -> None:
        """Ends the connections."""
        await self.http.aclose()

    def _send(self, key: tuple[tuple[int, ...], SamplingParams]) -> None:
        pending = self.pending.pop(key)
        task = asyncio.create_task(self._answer(pending))
        self.running.add(task)
        task.add_done_callback(lambda done: self._settle(pending, done))

    def _settle(self, pending: _Pending, task: asyncio.Task[list[EngineOutput]]) -> None:
        """Every future gets the outcome of the task, whatever that is."""
        self.running.discard(task)
        waiting = [(index, future) for index, future in enumerate(pending.futures) if not future.done()]
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception) and not isinstance(error, EngineError):
            why = EngineError(f"{self.url} answers what cannot be read ({type(error).__name__}: {error}): {REMEDY}")
            why.__cause__ = error
            error = why
        for index, future in waiting:
            if task.cancelled():
                future.cancel()
            elif error is not None:
                future.set_exception(error)
            else:
                future.set_result(task.result()[index])

    async def _answer(self, pending: _Pending) -> list[EngineOutput]:
        """One request for all where the server takes a seed for each; else a request each."""
        together = "seeds" in await self._capabilities()
        parts = [pending.seeds] if together else [[seed] for seed in pending.seeds]
        found = await asyncio.gather(*(self._ask(pending, seeds) for seeds in parts))
        return [output for part in found for output in part]

    async def _ask(self, pending: _Pending, seeds: Sequence[int]) -> list[EngineOutput]:
        """Outputs in the order of the seeds; what the engine gave up is asked for again."""
        found: dict[int, EngineOutput] = {}
        deadline = monotonic() + self.timeout
        while len(found) < len(seeds):
            missing = [index for index in range(len(seeds)) if index not in found]
            body = self._body(pending, [seeds[index] for index in missing])
            reply = await self._call("POST", "/completions" if self.openai else "/generate", body)
            outputs = read_completions(reply) if self.openai else read_generated(reply)
            if len(outputs) != len(missing):
                raise EngineError(f"{self.url} gives {len(outputs)} completions where {len(missing)} were asked for")
            found |= {
                index: output
                for index, output in zip(missing, outputs, strict=True)
                if output.stop_reason is not StopReason.ABORT
            }
            if len(found) < len(seeds):
                if monotonic() > deadline:
                    raise EngineError(f"{self.url} gave completions up for {self.timeout:.0f} s")
                await asyncio.sleep(self.policy.first_pause)
        return [found[index] for index in range(len(seeds))]

    def _body(self, pending: _Pending, seeds: Sequence[int]) -> dict[str, Any]:
        sampling = pending.sampling
        body: dict[str, Any] = {
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "logprobs": 0,
        }
        if sampling.top_k:
            body["top_k"] = sampling.top_k
        if sampling.stop:
            body |= {"stop": list(sampling.stop), "include_stop_str_in_output": True}
        # vLLM keeps a seed in 64 bits with a sign.
        body |= {"n": 1, "seed": seeds[0]} if len(seeds) == 1 else {"seeds": list(seeds)}
        ids = list(pending.context_ids)
        if self.openai:
            return {**body, "model": self.model_name, "prompt": ids, "return_token_ids": True}
        return {**body, "prompt": {"prompt_token_ids": ids}}

    async def _capabilities(self) -> set[str]:
        """What the server can do beside the dialect; asked once."""
        if self.accepts is None:
            if self.openai:
                models = await self._call("GET", "/models")
                if not (isinstance(models, dict) and models.get("data")):
                    raise EngineError(f"{self.url}/models names no model: {REMEDY}")
                self.model_name = models["data"][0]["id"]
                self.accepts = set()
            else:
                health = await self._call("GET", "/health")
                self.accepts = set(health.get("accepts", ())) if isinstance(health, dict) else set()
        return self.accepts

    def _json(self, reply: httpx.Response, path: str) -> Any:
        """vLLM's /health has an empty body. Raises EngineError where the body is something else than JSON."""
        try:
            return reply.json() if reply.content else {}
        except ValueError as error:
            said = " ".join(reply.text[:200].split())
            raise EngineError(
                f"{self.url}{path} answers {reply.status_code} without JSON ({said}): {REMEDY}"
            ) from error

    async def _call(self, method: str, path: str, body: Any = None) -> Any:
        """The reply; waits for a server that is not there."""

        async def once() -> Any:
            try:
                reply = await self.http.request(method, self.url + path, json=body)
            except httpx.TransportError as error:
                raise NotYet(f"does not answer ({type(error).__name__}: {error})") from error
            why = f"answers {reply.status_code}: {reply.text[:200]}"
            self.policy.refuse_busy(reply, why)
            if reply.is_success:
                return self._json(reply, path)
            if reply.status_code in MISTAKEN:
                raise EngineError(f"{self.url}{path} {why}")
            raise RequestRefused(f"{self.url}{path} {why}")

        try:
            return await self.policy.wait_for(once, self._say)
        except GaveUp as error:
            raise EngineError(
                f"the engine at {self.url} {error.why}, for {error.seconds:.0f} s now: start it, or correct --engine"
            ) from error

    def _say(self, why: str, seconds: float) -> None:
        text = "the engine at %s %s: waiting, %.0f s so far of %.0f"
        logger.info(text, self.url, why, seconds, self.timeout)


def read_generated(reply: Mapping[str, Any]) -> list[EngineOutput]:
    """The completions of a /generate reply.

    Raises:
        EngineError: it has no log-probs of its tokens.
    """
    logprobs, reasons = reply.get("logprobs"), reply.get("finish_reasons")
    if logprobs is None or reasons is None or len(logprobs) != len(reasons):
        raise EngineError("the engine's /generate gives no log-probs of the sampled tokens: is it a vLLM API server?")
    versions, ids = reply.get("versions"), reply.get("token_ids")
    outputs = []
    for index, (positions, reason) in enumerate(zip(logprobs, reasons, strict=True)):
        entries = [_entries(position) for position in positions]
        # The sampled token is the first entry, where the reply does not say it by itself.
        tokens = [next(iter(entry)) for entry in entries] if ids is None else list(ids[index])
        values = [entry[token] for entry, token in zip(entries, tokens, strict=True)]
        stamped = [(start, version) for start, version in versions[index]] if versions else []
        outputs.append(EngineOutput("", tokens, values, REASONS.get(reason, StopReason.ABORT), stamped))
    return outputs


def _entries(position: Any) -> dict[int, float]:
    """Log-probs by token id at one position: a dict, or a list with one."""
    found = position[0] if isinstance(position, list) else position
    return {int(id_): float(value) for id_, value in found.items()}


def read_completions(reply: Mapping[str, Any]) -> list[EngineOutput]:
    """The completions of an OpenAI reply.

    Raises:
        EngineError: it has no token ids.
    """
    outputs = []
    for choice in reply["choices"]:
        if choice.get("token_ids") is None or choice.get("logprobs") is None:
            raise EngineError("the engine's completions have no token ids or log-probs: it must be vLLM 0.10 or later")
        values = [float(value) for value in choice["logprobs"]["token_logprobs"]]
        reason = REASONS.get(choice["finish_reason"], StopReason.ABORT)
        outputs.append(EngineOutput("", list(choice["token_ids"]), values, reason))
    return outputs
