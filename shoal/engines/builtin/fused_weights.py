"""A Llama-like module's weights as the fast decoder reads them: fused, cast, with adapters merged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Architectures whose layers are those of the fast decoder.
ARCHITECTURES = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "GemmaForCausalLM"}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}
# Rotary embeddings whose angles depend on the position alone, not on the length of the sequence.
STATIC_ROPE = {"default", "linear", "llama3", "yarn"}
SMALL_MODEL = {"cpu": 2e8, "cuda": 2e9}  # parameters, by device; fused copies of a larger model would take too much


@dataclass
class Linear:
    """y = x W^T + b in the weights' dtype; several products side by side where they are not fused."""

    parts: list[tuple[Tensor, Tensor | None]]

    def __call__(self, x: Tensor) -> Tensor:
        """[N, in] -> [N, out] in x's dtype."""
        small = x.to(self.parts[0][0].dtype)
        if len(self.parts) == 1:
            return _product(small, *self.parts[0], x.dtype)
        return torch.cat([_product(small, *part, x.dtype) for part in self.parts], dim=-1)


def _product(small: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The bias is added after the result is widened, as the learner's linear layers do."""
    if small.dtype == dtype:
        return F.linear(small, weight, bias)
    out = F.linear(small, weight).to(dtype)
    return out if bias is None else out.add_(bias)


@dataclass
class Layer:
    """The weights of one layer. `head_norm` [heads + KV heads, D] scales normalised queries and keys."""

    attention_norm: Tensor
    qkv: Linear
    head_norm: Tensor | None
    out: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear


@dataclass
class Weights:
    """Everything that one forward pass reads."""

    embedding: Tensor
    embedding_scale: Tensor | None
    layers: list[Layer]
    norm: Tensor
    head: Tensor
    head_bias: Tensor | None

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, L, H] -> [R, L, V] float32. Logits rounded to 16 bits would be off by up to 0.06."""
        if self.head.dtype == torch.float32:
            return F.linear(hidden.float(), self.head, self.head_bias)
        if hidden.device.type == "cuda":
            flat = hidden.reshape(-1, hidden.shape[-1]).to(self.head.dtype)
            out = torch.mm(flat, self.head.t(), out_dtype=torch.float32).view(*hidden.shape[:-1], -1)
            return out if self.head_bias is None else out + self.head_bias
        return F.linear(hidden.to(self.head.dtype), self.head, self.head_bias).float()


def unsupported(causal_lm: Any) -> str:
    """Why the fast decoder cannot run this module, in words; empty where it can."""
    name = type(causal_lm).__name__
    config = causal_lm.config
    if name not in ARCHITECTURES or not type(causal_lm).__module__.startswith("transformers.models."):
        return f"{name} is none of {', '.join(sorted(ARCHITECTURES))}"
    if config.hidden_act not in ACTIVATIONS:
        return f"activation {config.hidden_act}"
    rope = getattr(causal_lm.model.rotary_emb, "rope_type", None)
    if rope not in STATIC_ROPE or config.rope_parameters.get("partial_rotary_factor", 1.0) != 1.0:
        return f"rotary embedding of type {rope}, or of a part of the head"
    if len({parameter.device for parameter in causal_lm.parameters()}) > 1:
        return "parameters on several devices"
    for layer in causal_lm.model.layers:
        for module in [*_projections(layer), causal_lm.lm_head]:
            if not _readable(module):
                return f"a linear layer of type {type(module).__name__}"
    return ""


def _projections(layer: Any) -> list[Any]:
    attention, mlp = layer.self_attn, layer.mlp
    linears = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    return [*linears, mlp.gate_proj, mlp.up_proj, mlp.down_proj]


def _readable(module: Any) -> bool:
    """Whether the module is a linear layer, or a LoRA adapter around one, whose product with x is x W^T + b."""
    base = module.base_layer if hasattr(module, "get_delta_weight") else module
    variants = getattr(module, "lora_variant", {})
    return isinstance(base, nn.Linear) and base.weight.is_floating_point() and not variants


def collect(causal_lm: Any, dtype: torch.dtype) -> Weights:
    """Reads a module's weights; products run in `dtype`. What needs no cast and no fusing is not copied."""
    inner = causal_lm.model
    parameters = sum(parameter.numel() for parameter in causal_lm.parameters())
    weight = inner.embed_tokens.weight
    small = fuses(weight.device.type, parameters, copied=dtype != weight.dtype or _adapted(causal_lm))
    shift = 1.0 if type(causal_lm).__name__.startswith("Gemma") else 0.0
    config = causal_lm.config

    def norm(module: Any) -> Tensor:
        return module.weight.detach() + shift if shift else module.weight.detach()

    layers = []
    for layer in inner.layers:
        query, key, value, out, gate, up, down = (_effective(module, dtype) for module in _projections(layer))
        attention = layer.self_attn
        head_norm = None
        if hasattr(attention, "q_norm"):
            counts = (config.num_attention_heads, config.num_key_value_heads)
            norms = (attention.q_norm, attention.k_norm)
            head_norm = torch.cat([norm(n).expand(count, -1) for n, count in zip(norms, counts, strict=True)])
        layers.append(
            Layer(
                attention_norm=norm(layer.input_layernorm),
                qkv=_joined([query, key, value], small),
                head_norm=head_norm,
                out=Linear([out]),
                mlp_norm=norm(layer.post_attention_layernorm),
                gate_up=_joined([gate, up], small),
                down=Linear([down]),
            )
        )
    on_cpu = weight.device.type == "cpu"
    head, head_bias = _effective(causal_lm.lm_head, causal_lm.lm_head.weight.dtype if on_cpu else dtype)
    return Weights(
        embedding=weight.detach(),
        embedding_scale=_embedding_scale(inner.embed_tokens),
        layers=layers,
        norm=norm(inner.norm),
        head=head,
        head_bias=head_bias,
    )


def fuses(device: str, parameters: int, copied: bool) -> bool:
    """Whether products with one input become one product, by the model's size; on a GPU also where its weights are
    `copied` in any case, because they are cast or merged."""
    return parameters < SMALL_MODEL.get(device, SMALL_MODEL["cpu"]) or (copied and device == "cuda")


def _adapted(causal_lm: Any) -> bool:
    return any(hasattr(module, "get_delta_weight") for module in _projections(causal_lm.model.layers[0]))


def windows(causal_lm: Any) -> list[int | None]:
    """Each layer's sliding window. Mistral's layers read it from the configuration, the others hold their own."""
    common = causal_lm.config.sliding_window if type(causal_lm).__name__ == "MistralForCausalLM" else None
    return [getattr(layer.self_attn, "sliding_window", common) for layer in causal_lm.model.layers]


def _embedding_scale(embedding: Any) -> Tensor | None:
    scale = getattr(embedding, "embed_scale", None)
    return None if scale is None else scale.to(embedding.weight.dtype)


def _effective(module: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Weight in `dtype` and bias of a linear layer, with its active LoRA adapters merged into the copy."""
    base = module
    weight = None
    if hasattr(module, "get_delta_weight"):
        base = module.base_layer
        if not module.disable_adapters:
            # Adapters that are merged already are part of the base layer's weight.
            active = [name for name in module.active_adapters if name not in module.merged_adapters]
            for name in active:
                if name in module.lora_A:
                    weight = (base.weight.detach() if weight is None else weight) + module.get_delta_weight(name)
    weight = base.weight.detach() if weight is None else weight
    return weight.to(dtype), None if base.bias is None else base.bias.detach()


def _joined(parts: Sequence[tuple[Tensor, Tensor | None]], small: bool) -> Linear:
    """One product for several where the copy is affordable."""
    if not small:
        return Linear(list(parts))
    biases = [bias for _, bias in parts if bias is not None]
    return Linear([(torch.cat([weight for weight, _ in parts]), torch.cat(biases) if biases else None)])
