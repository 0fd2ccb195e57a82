"""Tiny models of several architectures, a tokenizer, configurations and batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from shoal.config import ShoalConfig
from shoal.learners.local import LocalLearner
from shoal.types import Batch, TrainSequence

VOCABULARY = 48
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
# Windows of 6 tokens are shorter than the test sequences, so that sliding layers differ from full ones.
GEMMA = {**SHAPE, "sliding_window": 6, "query_pre_attn_scalar": 8}
ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "qwen3": lambda: Qwen3Config(**SHAPE, tie_word_embeddings=True),
    "llama": lambda: LlamaConfig(**SHAPE, tie_word_embeddings=False),
    "gemma2": lambda: Gemma2Config(**GEMMA, final_logit_softcapping=2.0),
    "gemma3": lambda: Gemma3TextConfig(**GEMMA, layer_types=["sliding_attention", "full_attention"]),
    "mistral": lambda: MistralConfig(**SHAPE, sliding_window=6),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=1, eos_token_id=1
    ),
}


def make_tokenizer(size: int = VOCABULARY, **special: str) -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({f"w{number}": number for number in range(size)}, unk_token="w0"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, **({"eos_token": "w1", "pad_token": "w0"} | special))


def make_config(folder: Path, **keys: Any) -> ShoalConfig:
    cfg = ShoalConfig()
    cfg.model.name = str(folder)
    cfg.optimizer.lr = 1e-2
    for name, value in {"runtime__target": "cpu", "runtime__mixed_precision": "none", **keys}.items():
        *nodes, last = name.split("__")
        node = cfg
        for one in nodes:
            node = getattr(node, one)
        assert hasattr(node, last), name
        setattr(node, last, value)
    return cfg


def make_batch(seed: int = 0, groups: int = 4, size: int = 3, segments: bool = True, temperature: float = 0.7) -> Batch:
    """Uneven groups: one of zero advantage, one whose completions have two segments, masked tokens here and there. The
    completions of a group begin alike."""
    random = np.random.default_rng(seed)
    sequences: list[TrainSequence] = []
    number = 0
    for group in range(groups):
        prompt = random.integers(2, VOCABULARY, random.integers(3, 9))
        alike = random.integers(2, VOCABULARY, 8)
        for _ in range(size):
            first = random.integers(2, VOCABULARY, random.integers(2, 14))
            same = random.integers(0, min(len(first), len(alike)) + 1)
            first[:same] = alike[:same]
            parts = [(prompt, first)]
            if segments and group == 2:
                parts.append((np.concatenate([prompt, first[:1]]), random.integers(2, VOCABULARY, 5)))
            masks = [random.random(len(ids)) > 0.2 for _, ids in parts]
            for mask in masks:
                mask[0] = True
            advantage = 0.0 if group == 1 else float(random.standard_normal())
            for (context, ids), mask in zip(parts, masks, strict=True):
                sequences.append(
                    TrainSequence(
                        completion=number,
                        group=group,
                        ids=np.concatenate([context, ids]),
                        context=len(context),
                        mask=mask,
                        sampler_logprobs=random.normal(-3.5, 0.3, len(ids)).astype(np.float32),
                        advantages=np.full(len(ids), advantage),
                        completion_tokens=int(sum(one.sum() for one in masks)),
                    )
                )
            number += 1
    tokens = sum(int(sequence.mask.sum()) for sequence in sequences)
    return Batch(sequences, number, tokens, temperature, max_new_tokens=16)


def gradient(learner: LocalLearner, batch: Batch) -> torch.Tensor:
    """The whole gradient of the batch's first optimizer step, before clipping, as one vector; the step is taken."""
    optimizer = learner.optimizer
    found: list[torch.Tensor] = []
    whole = optimizer.gradient_norm

    def listen() -> torch.Tensor:
        norm = whole()
        found.append(torch.cat([one.grad.flatten().clone() for one in optimizer.masters if one.grad is not None]))
        return norm

    optimizer.gradient_norm = listen  # type: ignore[method-assign]
    try:
        learner.train(batch)
    finally:
        optimizer.gradient_norm = whole  # type: ignore[method-assign]
    return found[0]


def relative(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    """|mine - theirs| / |theirs|, 2-norms."""
    return float((mine - theirs).norm() / theirs.norm())
