"""A tiny model that vLLM can load, saved to a folder, and engines on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from shoal.config.nodes.vllm import VllmConfig
from shoal.engines.servers.requests import RequestForm
from shoal.engines.stopping import eos_ids
from shoal.engines.vllm.arguments import VllmArguments
from shoal.engines.vllm.server_engine import VllmServerEngine

API_KEY = "a key of the tests"
POSITIONS = 512
ENDS = [256, 257]


def save_vllm_model(folder: Path, tokenizer: Any, *, seed: int = 7) -> Any:
    """A random Qwen3 with a head size that vLLM's CPU kernels know; two ids end a completion."""
    config = Qwen3Config(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=POSITIONS,
        eos_token_id=ENDS,
        bos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    model.generation_config.eos_token_id = ENDS
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval()


def tiny_arguments(folder: Path, **changes: Any) -> VllmArguments:
    """What starts vLLM on that model."""
    settings: dict[str, Any] = {
        "model": str(folder),
        "dtype": "float32",
        "max_model_len": POSITIONS,
        "max_num_seqs": 64,
        "device": "cpu",
        "cache_gib": 0.25,
        "eager": True,
    }
    return VllmArguments(**{**settings, **changes})


def request_form(model: Any, tokenizer: Any) -> RequestForm:
    return RequestForm(eos_ids(model, tokenizer), tokenizer, POSITIONS, needed=100)


def server_engine(folder: Path, model: Any, tokenizer: Any, logs: Path, **keys: Any) -> VllmServerEngine:
    """An engine on launched servers, or on `endpoints`."""
    cfg = VllmConfig(**{"request_timeout": 240.0, **keys})
    engine = VllmServerEngine(tiny_arguments(folder), request_form(model, tokenizer), cfg, logs)
    engine.refresh(0)
    return engine
