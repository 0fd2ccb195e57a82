"""Tiny models of several architectures, made on the spot, and what the tests of the engine ask of them."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from shoal.engines.base import Engine, EngineOutput, Request, SamplingParams

VOCABULARY = 300
POSITIONS = 96
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": POSITIONS,
    "eos_token_id": [256, 257],
    "pad_token_id": None,
    "bos_token_id": None,
}
GPT = {"vocab_size": VOCABULARY, "eos_token_id": [256, 257], "bos_token_id": None}
CONFIGS: dict[str, Callable[[], Any]] = {
    "qwen3": lambda: Qwen3Config(**SMALL, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**{k: v for k, v in SMALL.items() if k != "head_dim"}),
    "llama": lambda: LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True),
    "mistral": lambda: MistralConfig(**SMALL, sliding_window=7),
    "gemma": lambda: GemmaConfig(**SMALL),
    "gemma3": lambda: Gemma3TextConfig(
        **SMALL, sliding_window=7, layer_types=["sliding_attention", "full_attention"], query_pre_attn_scalar=8
    ),
    "gpt2": lambda: GPT2Config(**GPT, n_embd=32, n_layer=2, n_head=4, n_positions=POSITIONS),
    "gpt_neox": lambda: GPTNeoXConfig(
        **GPT,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
    ),
}


def build(name: str) -> Any:
    """A model with random weights, spread enough that its distributions are far from uniform."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def make_requests(
    prompts: int, group: int, sampling: SamplingParams | None = None, *, shortest: int = 2, longest: int = 19
) -> list[Request]:
    """Requests for `prompts` different prompts, `group` each, with seeds of their own."""
    generator = torch.Generator().manual_seed(3)
    requests = []
    for index in range(prompts):
        length = int(torch.randint(shortest, longest + 1, (1,), generator=generator))
        prompt = tuple(torch.randint(0, 256, (length,), generator=generator).tolist())
        requests += [
            Request(f"{index}/{i}", prompt, 1000 * index + i, sampling or SamplingParams(12), str(index))
            for i in range(group)
        ]
    return requests


def plain_logprobs(model: Any, prompt: tuple[int, ...], sampled: list[int], temperature: float = 1.0) -> list[float]:
    """Log-probs by one plain forward pass over one unpadded sequence."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *sampled]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    chosen = (logits / temperature).log_softmax(-1).gather(-1, torch.tensor(sampled)[:, None])
    return chosen.squeeze(-1).tolist()


def completed(engine: Engine) -> Iterator[EngineOutput]:
    """Outputs as they finish, until nothing is in flight."""
    while engine.in_flight:
        yield from engine.poll(1.0)
