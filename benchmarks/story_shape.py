"""The default task's architecture with random weights: 0.41M parameters."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

VOCABULARY = 104


def story_shaped_model(**changes: Any) -> Qwen3ForCausalLM:
    """Made from the same seed each time; `changes` go to the configuration."""
    torch.manual_seed(0)
    return Qwen3ForCausalLM(
        Qwen3Config(
            **{
                "vocab_size": VOCABULARY,
                "hidden_size": 128,
                "intermediate_size": 384,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 32,
                "max_position_embeddings": 512,
                "tie_word_embeddings": True,
                **changes,
            }
        )
    )
