"""POST /generate on a vLLM server, in the dialect of vLLM's small API server, which environments of Atropos speak.

The request and the reply are those of `shoal.engines.generate_server`, without `versions`. Where the trainer has given
the server an adapter, completions are the adapter's.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from shoal.engines import vllm_compat


async def generate_dialect(request: Request) -> Response:
    """`n` completions of one prompt, each with a seed of its own."""
    body = await request.json()
    state = request.scope["shoal.vllm"]
    engine = state.engine_client
    tokenizer = engine.get_tokenizer()
    prompt = body["prompt"]
    ids = tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else list(prompt["prompt_token_ids"])
    name = secrets.token_hex(8)
    asked = [
        {**_request(body, seed), "id": f"{name}/{index}", "prompt": ids} for index, seed in enumerate(_seeds(body))
    ]
    adapter = getattr(state, "shoal_adapter", None)
    found = await asyncio.gather(*(vllm_compat.generate(engine, one, adapter) for one in asked))
    errors = [one["error"] for one in found if "error" in one]
    if errors:
        return JSONResponse({"detail": errors[0]}, 422)
    return JSONResponse(
        {
            "text": [tokenizer.decode(one["tokens"], skip_special_tokens=True) for one in found],
            "finish_reasons": [one["reason"] if one["reason"] in ("stop", "length") else "abort" for one in found],
            "prompt_token_ids": ids,
            "token_ids": [one["tokens"] for one in found],
            "logprobs": [
                [[{id_: logprob}] for id_, logprob in zip(one["tokens"], one["logprobs"], strict=True)] for one in found
            ],
        }
    )


def _seeds(body: Mapping[str, Any]) -> list[int]:
    first = body.get("seed")
    if first is None:
        first = secrets.randbits(62)
    return list(body.get("seeds") or [first + index for index in range(body.get("n", 1))])


def _request(body: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Our form of one completion's request."""
    stop = body.get("stop") or []
    return {
        "seed": seed,
        "max_tokens": body.get("max_tokens", 16),
        "temperature": body.get("temperature", 1.0),
        "top_p": body.get("top_p", 1.0),
        "top_k": max(body.get("top_k", 0), 0),
        "stop": [stop] if isinstance(stop, str) else list(stop),
        "ends": [],
    }
