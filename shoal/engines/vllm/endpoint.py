"""What is asked of a server that someone else runs, before training starts: is it there, and does it fit the policy."""

from __future__ import annotations

import os
from typing import Any

import httpx

from shoal.engines.vllm.arguments import SERVED_NAME
from shoal.errors import EngineError

API_KEY_VARIABLE = "SHOAL_VLLM_API_KEY"
PROBE_TEXT = "7-2=5; so the answer is 42.\nGrüße, 東京!"
ASK_SECONDS = 30.0


def check_endpoint(
    url: str, headers: dict[str, str], *, where: str, key: str, tokenizer: Any, needed: int, name: str | None = None
) -> dict[str, Any]:
    """The entry of /v1/models that is served there.

    Args:
        where: What named the server, for error lines.
        key: Option of the server's key.
        needed: Tokens of the longest prompt and completion.
        name: The served name that is wanted. None: `policy` where there is one, else the first.

    Raises:
        EngineError: nothing answers, the key is wrong, or its model has another tokenizer or too little room.
    """
    try:
        response = httpx.get(f"{url}/v1/models", headers=headers, timeout=ASK_SECONDS, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise EngineError(
            f"{where}: nothing answers there ({type(error).__name__}); start the server, or correct host and port"
        ) from error
    if response.status_code in (401, 403):
        raise EngineError(
            f"{where}: the server refuses the API key: set {key}, or {API_KEY_VARIABLE} in the environment, to its own"
        )
    models = _models(response)
    if not models:
        raise EngineError(f"{where}: what answers there is no vLLM server (HTTP {response.status_code} on /v1/models)")
    by_name = {str(model["id"]): model for model in models}
    if name is not None and name not in by_name:
        raise EngineError(f"{where}: it serves no model {name!r}, but {', '.join(by_name)}")
    model = by_name.get(name or SERVED_NAME, models[0])
    room = model.get("max_model_len")
    if room is not None and room < needed:
        raise EngineError(
            f"{where}: its max_model_len is {room}, but prompt and completion may have {needed} tokens; start it with "
            f"--max-model-len={needed} or more, or lower data.max_prompt_tokens or sampling.max_new_tokens"
        )
    _check_tokenizer(url, headers, where, str(model["id"]), tokenizer)
    return model


def has_shoal_routes(url: str, headers: dict[str, str]) -> bool:
    """Whether the server was started by Shoal."""
    response = httpx.post(f"{url}/shoal/about", json={}, headers=headers, timeout=ASK_SECONDS, trust_env=False)
    return response.status_code == 200


def key_or_environment(key: str | None) -> str | None:
    """A server's key: as configured, else from the environment."""
    return key or os.environ.get(API_KEY_VARIABLE)


def _models(response: httpx.Response) -> list[dict[str, Any]]:
    try:
        found = response.json()
    except ValueError:
        return []
    data = found.get("data") if isinstance(found, dict) else None
    return [model for model in data if isinstance(model, dict) and "id" in model] if isinstance(data, list) else []


def _check_tokenizer(url: str, headers: dict[str, str], where: str, model: str, tokenizer: Any) -> None:
    """Both tokenise a probe alike. Servers without the route are let through: the self-check compares log-probs."""
    body = {"model": model, "prompt": PROBE_TEXT, "add_special_tokens": False}
    response = httpx.post(f"{url}/tokenize", json=body, headers=headers, timeout=ASK_SECONDS, trust_env=False)
    if response.status_code != 200:
        return
    mine = tokenizer.encode(PROBE_TEXT, add_special_tokens=False)
    if response.json()["tokens"] != mine:
        raise EngineError(
            f"{where}: the server's model {model!r} has another tokenizer than model.name ({tokenizer.name_or_path}); "
            "start it on the model that is trained"
        )
