"""Routes of a vLLM server that are for others than Shoal's trainer: environments, and people who start it by hand.

/generate speaks the dialect of generate_dialect.py; /bridge and /lora are those of Atropos' example server, where they
do what they say. All are behind the server's key.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Sequence
from logging import getLogger
from typing import Any

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from shoal.engines.served.dialect import GenerateRequest, reply
from shoal.engines.servers.requests import output_of
from shoal.engines.stopping import text_decoder
from shoal.engines.vllm import compat as vllm_compat

logger = getLogger(__name__)

BRIDGE = "SHOAL_VLLM_BRIDGE"
"""Names the folder where the server describes its shared parameters; not set, it shares none."""

ADAPTER = "policy"


async def version_of(state: Any) -> int:
    """The weights' version, as the workers say; asked again after whatever may have changed it."""
    if getattr(state, "shoal_version", None) is None:
        found = await state.engine_client.collective_rpc("shoal_status", timeout=60.0)
        state.shoal_version = min(status["version"] for status in found)
    return int(state.shoal_version)


def forget_version(state: Any) -> None:
    """The weights may be other ones now."""
    state.shoal_version = None


async def health(request: Request) -> Response:
    """That the engine lives, and what /generate takes beside the dialect. Needs no key."""
    state = request.scope["shoal.vllm"]
    try:
        await state.engine_client.check_health()
    except Exception as error:  # noqa: BLE001 - whatever vLLM raises here says that its engine is dead
        return JSONResponse({"status": "dead", "error": str(error)}, 503)
    return JSONResponse({"status": "ok", "accepts": ["seeds"]})


async def health_generate(request: Request) -> Response:
    """That one token can be sampled."""
    state = request.scope["shoal.vllm"]
    asked = {"id": f"health {secrets.token_hex(8)}", "prompt": [0], "seed": 0, "ends": [], "stop": []}
    sampling = {"max_tokens": 1, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    found = await vllm_compat.generate(state.engine_client, {**asked, **sampling}, None)
    return JSONResponse(found, 503 if "error" in found else 200)


async def generate(request: Request) -> Response:
    """Completions of one prompt. Tokens are stamped with the oldest version that may have sampled them."""
    state = request.scope["shoal.vllm"]
    try:
        body = GenerateRequest.model_validate_json(await request.body())
    except ValidationError as error:
        return JSONResponse({"error": _one_line(error)}, 422)
    if body.stream:
        return JSONResponse({"error": "stream: completions come whole only; leave it out"}, 422)
    tokenizer = vllm_compat.tokenizer_of(state.engine_client)
    prompt = tokenizer.encode(body.prompt) if isinstance(body.prompt, str) else body.prompt.prompt_token_ids
    if not prompt:
        return JSONResponse({"error": "prompt: it has no token"}, 422)
    version = await version_of(state)
    results = await _sample(state, body, prompt)
    refused = [result["error"] for result in results if "error" in result]
    if refused:
        return JSONResponse({"error": refused[0]}, 422)
    outputs = [output_of(result, [(0, version)]) for result in results]
    decode = text_decoder(tokenizer, vllm_compat.end_ids(state.engine_client))
    return JSONResponse(reply(prompt, outputs, decode))


async def _sample(state: Any, body: GenerateRequest, prompt: Sequence[int]) -> list[dict[str, Any]]:
    sampling = body.sampling()
    name = secrets.token_hex(8)
    asked = [
        {
            "id": f"{name}/{index}",
            "prompt": list(prompt),
            "seed": seed,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "stop": list(sampling.stop),
            "ends": vllm_compat.end_ids(state.engine_client),
        }
        for index, seed in enumerate(body.seed_of_each())
    ]
    adapter = getattr(state, "shoal_adapter", None)
    return list(await asyncio.gather(*(vllm_compat.generate(state.engine_client, one, adapter) for one in asked)))


def _one_line(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_url=False)[:3])


# The bridge: parameters in memory that a trainer on this machine maps.


async def share(state: Any) -> None:
    """Before the server answers: puts its parameters where a trainer can map them, and describes them in a file."""
    folder = os.environ.get(BRIDGE)
    if folder:
        url = f"http://{state.args.host or '127.0.0.1'}:{state.args.port}"
        found = await state.engine_client.collective_rpc("shoal_share", timeout=300.0, args=(folder, url, False))
        logger.info("bridge: %d parameters shared, described in %s", found[0]["parameters"], folder)


async def bridge_info(request: Request) -> Response:
    """Where the bridge is, and the version of the weights."""
    state = request.scope["shoal.vllm"]
    folder = os.environ.get(BRIDGE)
    return JSONResponse({"enabled": folder is not None, "folder": folder, "version": await version_of(state)})


async def bridge_pause(request: Request) -> Response:
    """Holds generation; requests in flight stay and go on after /bridge/resume."""
    engine = request.scope["shoal.vllm"].engine_client
    await engine.pause_generation(mode="keep", clear_cache=False)
    return JSONResponse({"status": "paused"})


async def bridge_resume(request: Request) -> Response:
    """Goes on, with whatever weights are there now: nothing that older ones left in the prefix cache is used."""
    state = request.scope["shoal.vllm"]
    forget_version(state)
    await state.engine_client.reset_prefix_cache(True, False)
    await state.engine_client.resume_generation()
    return JSONResponse({"status": "resumed"})


async def bridge_is_paused(request: Request) -> Response:
    return JSONResponse({"paused": bool(await request.scope["shoal.vllm"].engine_client.is_paused())})


# Adapters.


async def lora_load(request: Request) -> Response:
    """Takes the adapter in a folder of this machine, now: a bad one is refused here, not at the next completion."""
    state = request.scope["shoal.vllm"]
    body = await request.json()
    folder = body.get("adapter_path") if isinstance(body, dict) else None
    if not isinstance(folder, str):
        return JSONResponse({"error": 'the body is {"adapter_path": FOLDER}'}, 422)
    adapter = vllm_compat.adapter_request(str(body.get("adapter_name") or ADAPTER), folder)
    try:
        done = await state.engine_client.add_lora(adapter)
    except Exception as error:  # noqa: BLE001 - vLLM raises many kinds; each means that the adapter was not taken
        return JSONResponse({"error": " ".join(str(error).split())[:500]}, 400)
    if not done:
        return JSONResponse({"error": f"vLLM did not take the adapter in {folder}"}, 400)
    state.shoal_adapter = adapter
    forget_version(state)
    return JSONResponse({"status": "loaded", "adapter_name": adapter.lora_name, "adapter_path": folder})


async def lora_unload(request: Request) -> Response:
    """Back to the base model."""
    state = request.scope["shoal.vllm"]
    adapter = getattr(state, "shoal_adapter", None)
    if adapter is None:
        return JSONResponse({"error": "no adapter is loaded"}, 409)
    await state.engine_client.remove_lora(adapter.lora_int_id)
    state.shoal_adapter = None
    forget_version(state)
    return JSONResponse({"status": "unloaded", "adapter_name": adapter.lora_name})


async def lora_status(request: Request) -> Response:
    """Which adapter completions are sampled with."""
    adapter = getattr(request.scope["shoal.vllm"], "shoal_adapter", None)
    loaded = None if adapter is None else {"adapter_name": adapter.lora_name, "adapter_path": adapter.lora_path}
    return JSONResponse({"loaded": loaded})


GET, POST = ("GET",), ("POST",)
ROUTES = {
    "/health": (GET, health),
    "/health_generate": (GET, health_generate),
    "/generate": (POST, generate),
    "/bridge/info": (GET, bridge_info),
    "/bridge/pause": (POST, bridge_pause),
    "/bridge/resume": (POST, bridge_resume),
    "/bridge/is_paused": (GET, bridge_is_paused),
    "/lora/load": (POST, lora_load),
    "/lora/unload": (POST, lora_unload),
    "/lora/status": (GET, lora_status),
}
