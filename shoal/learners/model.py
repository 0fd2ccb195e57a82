"""The policy: any Hugging Face causal language model and its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from logging import getLogger
from typing import Any

from safetensors import SafetensorError
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from shoal.config.nodes.model import ModelConfig
from shoal.errors import ConfigError
from shoal.learners.cpu.mixed import use_mixed_linears
from shoal.learners.cpu.norm import use_lean_norms
from shoal.learners.cpu.rotary import use_rotary_tables
from shoal.learners.cpu.tree_attention import use_tree_attention
from shoal.learners.cuda.lora import use_lean_adapters
from shoal.learners.cuda.norm import use_fused_norms
from shoal.learners.cuda.pointwise import use_fused_pointwise
from shoal.learners.cuda.varlen_attention import NAME as VARLEN
from shoal.learners.cuda.varlen_attention import use_varlen_attention
from shoal.learners.lora import add_lora, load_adapter
from shoal.models.adapters import adapter_base, whole_model
from shoal.models.info import ModelInfo, read_info
from shoal.models.loading import cannot_load, read_architecture
from shoal.runtime import Runtime

logger = getLogger(__name__)


@dataclass
class Policy:
    """A model on its device, and what is known of it without its weights.

    `model` is the causal language model, or PEFT's wrapper around it where `lora`.
    """

    model: Any
    info: ModelInfo
    lora: bool

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, with the configured chat template."""
        return self.info.tokenizer

    @property
    def vocabulary(self) -> int:
        """Ids that both the tokenizer and the model know."""
        return self.info.vocabulary

    @property
    def max_positions(self) -> int:
        """Tokens that the model can hold."""
        return self.info.max_positions

    @property
    def causal_lm(self) -> Any:
        """The causal language model without PEFT's wrapper (its layers keep their adapters)."""
        return self.model.get_base_model() if self.lora else self.model


def load_policy(cfg: ModelConfig, runtime: Runtime, info: ModelInfo | None = None) -> Policy:
    """Loads the model and tokenizer; adds an adapter where `train=lora`. `info` is what `read_info` has said of `cfg`,
    where it was asked.

    A local folder with an adapter is trained on under `train=lora`, and otherwise merged into its base.

    Raises:
        ConfigError: one line on what is missing or does not fit together; what can be told without the weights is
            told before they are read.
    """
    info = info or read_info(cfg)
    model = load_causal_lm(
        info.name, info.revision, cfg.trust_remote_code, runtime, any_attention=cfg.attention == "auto"
    )
    if cfg.gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise ConfigError(
                f"model.gradient_checkpointing: {type(model).__name__} does not support it; set it to false"
            )
        model.gradient_checkpointing_enable({"use_reentrant": False})
    lora = cfg.train == "lora"
    if info.adapter_folder is not None:
        wrapped = load_adapter(model, cfg.name, train=lora)
    elif lora:
        wrapped = add_lora(model, cfg.lora)
    else:
        wrapped = model
    compute_as_learners_do(wrapped, model, runtime)
    return Policy(wrapped.eval(), info, lora)


def load_frozen(
    name: str, revision: str | None, trust_remote_code: bool, runtime: Runtime, *, any_attention: bool, key: str
) -> Any:
    """As `load_causal_lm`, but a local folder with an adapter is merged into its base."""
    model = load_causal_lm(
        *whole_model(name, revision), trust_remote_code, runtime, any_attention=any_attention, key=key
    )
    return model if adapter_base(name) is None else load_adapter(model, name, train=False)


def compute_as_learners_do(wrapped: Any, causal_lm: Any, runtime: Runtime) -> None:
    """Replaces what is slow in a model, PEFT's wrapper included, so that policy and reference compute alike."""
    use_mixed_linears(wrapped, runtime)
    use_rotary_tables(wrapped, runtime)
    use_lean_norms(wrapped, runtime)
    use_fused_norms(wrapped, runtime)
    use_fused_pointwise(causal_lm, runtime)
    use_lean_adapters(wrapped, runtime)
    use_tree_attention(causal_lm, runtime)
    use_varlen_attention(causal_lm, runtime)


def load_causal_lm(
    name: str,
    revision: str | None,
    trust_remote_code: bool,
    runtime: Runtime,
    *,
    any_attention: bool,
    key: str = "model.name",
) -> Any:
    """The bare model on the runtime's device, in its dtype, in evaluation mode, with its own dropout set to 0.

    `any_attention` takes eager attention where the model has not the runtime's. `key` is the configuration key that
    errors name.
    Dropout would make the policy that is trained another one than the policy that sampled.

    Raises:
        ConfigError: it cannot be loaded, or is no causal language model.
    """
    disable_progress_bar()  # it would tear the live display
    config = read_architecture(name, revision, trust_remote_code, key)
    try:
        for entry, value in config.to_dict().items():
            if entry.endswith(("dropout", "pdrop")) and isinstance(value, float):
                setattr(config, entry, 0.0)
        load = partial(
            AutoModelForCausalLM.from_pretrained,
            name,
            config=config,
            revision=revision,
            trust_remote_code=trust_remote_code,
            dtype=runtime.param_dtype,
        )
        attention = "sdpa" if runtime.attention == VARLEN else runtime.attention
        if any_attention and attention == "sdpa" and getattr(config.get_text_config(), "attn_logit_softcapping", None):
            # torch's kernel has no soft cap on attention scores and would leave it out in silence.
            attention = "eager"
        try:
            model = load(attn_implementation=attention)
        except ValueError as error:
            if not any_attention or "attention implementation" not in str(error):
                raise
            logger.warning("%s has no %s attention: eager is used", name, attention)
            model = load(attn_implementation="eager")
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise ConfigError(cannot_load("model", name, error, key, revision)) from error
    model.to(runtime.device)  # type: ignore[arg-type]
    return model.eval()
