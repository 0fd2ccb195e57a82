"""`shoal serve vllm`: a vLLM server for trainers and environments that others start."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from shoal.engines.servers.process import refuse_taken_port
from shoal.engines.vllm.arguments import SERVED_NAME, VllmArguments, lora_room, on_device
from shoal.engines.vllm.compat import check_vllm
from shoal.engines.vllm.endpoint import API_KEY_VARIABLE
from shoal.engines.vllm.inside import app as vllm_app
from shoal.engines.vllm.inside.routes import BRIDGE
from shoal.errors import ConfigError
from shoal.network import refuse_public_without_token

TRAINED_IN = {"cuda": "bfloat16", "cpu": "float32"}  # what model.dtype=auto is there
LONGEST = 4096  # tokens of prompt and completion, where nothing else is said


@dataclass
class ServeOptions:
    """What `shoal serve vllm` was told; the fields are its flags."""

    model: str
    host: str
    port: int
    bridge: str | None
    lora_rank: int
    dtype: str
    tensor_parallel: int
    memory_share: float
    cache_gib: float
    max_model_len: int
    max_batch: int
    eager: str
    extra: Sequence[str] = ()


def arguments_of(options: ServeOptions) -> VllmArguments:
    """vLLM's arguments. The model also has its own name there, beside the one that Shoal's trainer asks for.

    Raises:
        ConfigError: a bridge from several workers, or together with adapters.
    """
    if options.bridge and options.tensor_parallel > 1:
        raise ConfigError(
            f"--bridge shares the memory of one worker, but --tensor-parallel is {options.tensor_parallel}: leave one "
            "of them out"
        )
    if options.bridge and options.lora_rank:
        raise ConfigError("--bridge shares all weights, --lora-rank takes adapters beside frozen ones: choose one")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return VllmArguments(
        model=options.model,
        # A trainer that shares these weights has them in the dtype of its own default.
        dtype=TRAINED_IN[device] if options.bridge and options.dtype == "auto" else options.dtype,
        max_model_len=options.max_model_len or min(LONGEST, positions(options.model)),
        max_num_seqs=options.max_batch,
        device=device,
        tensor_parallel=options.tensor_parallel,
        memory_share=options.memory_share,
        cache_gib=options.cache_gib or (1.0 if device == "cpu" else 0.0),
        eager=on_device(options.eager, device),
        max_lora_rank=lora_room(options.lora_rank) if options.lora_rank else 0,
        lora_targets=adaptable_layers(options.model) if options.lora_rank else (),
        extra=("--served-model-name", SERVED_NAME, options.model, *options.extra),
    )


def adaptable_layers(model: str) -> tuple[str, ...]:
    """Names of the linear layers but the head, as `model.lora` adapts them; made without weights."""
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(_config(model))
    head = empty.get_output_embeddings()
    layers = [name for name, one in empty.named_modules() if isinstance(one, nn.Linear) and one is not head]
    return tuple(sorted({name.rpartition(".")[2] for name in layers}))


def positions(model: str) -> int:
    """Tokens that the model can hold. Raises ConfigError where there is no such model."""
    return getattr(_config(model).get_text_config(), "max_position_embeddings", None) or LONGEST


def _config(model: str) -> Any:
    try:
        return AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--model {model}: there is no such model here or on the Hub ({_first(error)})") from error


def _first(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def serve_vllm(options: ServeOptions) -> int:
    """Serves until Ctrl-C or SIGTERM; the exit status.

    Raises:
        ConfigError: the address is public and no key is set, or flags that do not go together.
        EngineError: vLLM is missing, or the port is taken.
    """
    key = os.environ.get(API_KEY_VARIABLE)
    refuse_public_without_token(
        options.host, {API_KEY_VARIABLE: key}, option="--host", users="the trainer and the environments run"
    )
    check_vllm()
    arguments = arguments_of(options)
    refuse_taken_port(options.host, options.port, "--port")
    # vLLM reads these when it is imported, here and in its workers.
    os.environ.update(arguments.environment())
    if key:
        os.environ["VLLM_API_KEY"] = key
    if options.bridge:
        Path(options.bridge).mkdir(parents=True, exist_ok=True)
        os.environ[BRIDGE] = str(Path(options.bridge).resolve())
    vllm_app.main([*arguments.line(), f"--host={options.host}", f"--port={options.port}"])
    return 0
