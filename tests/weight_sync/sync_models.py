"""Tiny models that both the learner and vLLM know, and a batch that moves their weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from shoal.tasks.story import story_tokenizer
from shoal.types import Batch, TrainSequence

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
}
ARCHITECTURES: dict[str, Callable[..., Any]] = {
    # vLLM's attention kernels on a CPU need heads of 32 or more.
    "qwen2": lambda **more: Qwen2Config(**SHAPE | {"hidden_size": 128}, tie_word_embeddings=True, **more),
    "qwen3": lambda **more: Qwen3Config(**SHAPE, head_dim=32, tie_word_embeddings=True, **more),
    "llama": lambda **more: LlamaConfig(**SHAPE, head_dim=32, tie_word_embeddings=False, **more),
}


def save_model(name: str, folder: Path) -> Path:
    """A random model of an architecture, spread enough that its distributions are far from uniform."""
    tokenizer = story_tokenizer()
    # 130 is no multiple of 64, to which vLLM pads: the last ids have no words.
    config = ARCHITECTURES[name](
        vocab_size=130, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(2.0) if parameter.dim() > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def a_batch(seed: int = 0) -> Batch:
    """Two completions of opposite advantages."""
    random = np.random.default_rng(seed)
    sequences = [
        TrainSequence(
            completion=number,
            group=0,
            ids=random.integers(7, 100, 12),
            context=4,
            mask=np.ones(8, dtype=bool),
            sampler_logprobs=np.full(8, -4.6, dtype=np.float32),
            advantages=np.full(8, 1.0 if number else -1.0),
            completion_tokens=8,
        )
        for number in range(2)
    ]
    return Batch(sequences, completions=2, trained_tokens=16, temperature=1.0, max_new_tokens=8)
