"""Options of the policy model, its adapter and its reference."""

from dataclasses import dataclass
from typing import Any

from shoal.config.options import option


@dataclass
class LoraConfig:
    """A PEFT adapter, used when model.train=lora."""

    r: int = option(16, "Rank", least=1)
    alpha: float = option(32.0, "Scale: the update is multiplied by alpha / r", least=0)
    dropout: float = option(
        0.0, "Dropout before the adapter. Off in the passes that give log-probs to compare", least=0
    )
    target_modules: list[str] = option(
        list, "Names of the linear layers to adapt. Empty: every linear layer but the head"
    )
    layers: list[int] = option(list, "Indices of the layers to adapt. Empty: all")


@dataclass
class ModelConfig:
    """The policy: any Hugging Face causal language model."""

    name: str = option("story", "Hub name, local folder, or `story`: the built-in warm-started model")
    revision: str | None = option(None, "Branch, tag or commit on the Hub")
    tokenizer: str | None = option(None, "Tokenizer's name or folder, where it is not the model's")
    tokenizer_revision: str | None = option(None, "Branch, tag or commit of the tokenizer")
    trust_remote_code: bool = option(False, "Run model code that comes with the weights")
    chat_template: str | None = option(
        None, "plain, dialogue, chatml or r1; or a file with a Jinja template, or the template. None: the tokenizer's"
    )
    chat_template_kwargs: dict[str, Any] = option(
        dict, "Arguments of the chat template, such as enable_thinking: false"
    )
    train: str = option("full", "Train all weights or an adapter", choices=("full", "lora"))
    dtype: str = option("auto", "Parameters' dtype", choices=("auto", "float32", "bfloat16", "float16"))
    attention: str = option(
        "auto", "Attention implementation", choices=("auto", "eager", "sdpa", "varlen", "flash_attention_2")
    )
    gradient_checkpointing: bool = option(False, "Recompute activations in the backward pass: less memory, more time")
    lora: LoraConfig = option(LoraConfig, "Adapter, with train=lora")


@dataclass
class OptimizerConfig:
    """AdamW and its schedule."""

    name: str = option("adamw", "Optimizer; adamw_8bit needs CUDA and bitsandbytes", choices=("adamw", "adamw_8bit"))
    lr: float = option(1e-6, "Peak learning rate", least=0)
    betas: list[float] = option([0.9, 0.95], "Decay rates of the two moments")
    eps: float = option(1e-8, "Added to the root of the second moment", least=0)
    weight_decay: float = option(0.0, "Decoupled weight decay", least=0)
    max_grad_norm: float = option(1.0, "Gradients are scaled down to this norm. 0: never", least=0)
    scheduler: str = option(
        "constant",
        "Schedule after the warm-up (Hugging Face names)",
        choices=("constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt"),
    )
    scheduler_kwargs: dict[str, Any] = option(
        dict, "Arguments of the schedule, such as num_cycles: 3 (cosine_with_restarts) or power: 2 (polynomial)"
    )
    warmup_steps: int = option(
        0, "Optimizer steps over which the learning rate rises; the first takes 1 / warmup_steps of it", least=0
    )
    warmup_ratio: float = option(0.0, "The same, as a share of the run; used where warmup_steps is 0", least=0)
