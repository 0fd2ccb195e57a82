"""The policy: any Hugging Face causal language model and its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils.logging import disable_progress_bar

from shoal.config.nodes.model import ModelConfig
from shoal.engines.stopping import eos_ids
from shoal.errors import ConfigError
from shoal.hub import hub_address, is_offline, look_for_hub
from shoal.learners.cpu.mixed import use_mixed_linears
from shoal.learners.cpu.norm import use_lean_norms
from shoal.learners.cpu.rotary import use_rotary_tables
from shoal.learners.cpu.tree_attention import use_tree_attention
from shoal.learners.lora import add_lora, load_adapter, refuse_unused_settings
from shoal.models.adapters import adapter_base, whole_model
from shoal.models.templates import TEMPLATES
from shoal.runtime import Runtime

logger = getLogger(__name__)

MANY_POSITIONS = 2**20


@dataclass
class Policy:
    """A model on its device and its tokenizer.

    `model` is the causal language model, or PEFT's wrapper around it. `vocabulary` counts ids that both the tokenizer
    and the model know; `max_positions` the tokens that the model can hold.
    """

    model: Any
    tokenizer: Any
    vocabulary: int
    max_positions: int
    lora: bool

    @property
    def causal_lm(self) -> Any:
        """The causal language model without PEFT's wrapper (its layers keep their adapters)."""
        return self.model.get_base_model() if self.lora else self.model


def load_policy(cfg: ModelConfig, runtime: Runtime) -> Policy:
    """Loads the model and tokenizer; adds an adapter where `train=lora`.

    A local folder with an adapter is trained on under `train=lora`, and otherwise merged into its base.

    Raises:
        ConfigError: one line on what is missing or does not fit together.
    """
    tokenizer = load_tokenizer(cfg)
    base = adapter_base(cfg.name)
    model = load_causal_lm(
        *whole_model(cfg.name, cfg.revision),
        cfg.trust_remote_code,
        runtime,
        any_attention=cfg.attention == "auto",
    )
    embeddings = model.get_input_embeddings().num_embeddings
    refuse_foreign_tokenizer(cfg.name, tokenizer, embeddings)
    if not eos_ids(model, tokenizer):
        raise ConfigError(
            f"model.name={cfg.name}: neither the tokenizer nor the model's generation_config names an end-of-sequence "
            "id, so no completion could ever stop; set eos_token in the tokenizer's files"
        )
    if cfg.gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise ConfigError(
                f"model.gradient_checkpointing: {type(model).__name__} does not support it; set it to false"
            )
        model.gradient_checkpointing_enable({"use_reentrant": False})
    lora = cfg.train == "lora"
    if base:
        refuse_unused_settings(cfg.name, cfg.lora)
        wrapped = load_adapter(model, cfg.name, train=lora)
    elif lora:
        wrapped = add_lora(model, cfg.lora)
    else:
        wrapped = model
    compute_as_learners_do(wrapped, model, runtime)
    return Policy(
        model=wrapped.eval(),
        tokenizer=tokenizer,
        vocabulary=min(len(tokenizer), embeddings),
        max_positions=getattr(model.config.get_text_config(), "max_position_embeddings", None) or MANY_POSITIONS,
        lora=lora,
    )


def load_frozen(
    name: str, revision: str | None, trust_remote_code: bool, runtime: Runtime, *, any_attention: bool, key: str
) -> Any:
    """As `load_causal_lm`, but a local folder with an adapter is merged into its base."""
    model = load_causal_lm(
        *whole_model(name, revision), trust_remote_code, runtime, any_attention=any_attention, key=key
    )
    return model if adapter_base(name) is None else load_adapter(model, name, train=False)


# A tokenizer with fewer ids beyond the model's than this has added tokens that no text needs (Gemma 3's image token).
FEW_IDS = 64


def refuse_foreign_tokenizer(name: str, tokenizer: Any, embeddings: int) -> None:
    """Raises ConfigError where texts would get ids that the model does not have. Added tokens beyond its ids are let
    through where they are few: prompts with them are refused by their ids."""
    plain = getattr(tokenizer, "vocab_size", None) or len(tokenizer)
    if len(tokenizer) <= embeddings or (plain <= embeddings and len(tokenizer) < embeddings + FEW_IDS):
        return
    raise ConfigError(
        f"model.name={name}: the tokenizer has {len(tokenizer)} ids, the model only {embeddings}; "
        "set model.tokenizer to the one that the model was trained with"
    )


def compute_as_learners_do(wrapped: Any, causal_lm: Any, runtime: Runtime) -> None:
    """Replaces what is slow in a model, PEFT's wrapper included, so that policy and reference compute alike."""
    use_mixed_linears(wrapped, runtime)
    use_rotary_tables(wrapped, runtime)
    use_lean_norms(wrapped, runtime)
    use_tree_attention(causal_lm, runtime)


def load_tokenizer(cfg: ModelConfig) -> Any:
    """The tokenizer, with the configured chat template (a file's content, or the text itself).

    Raises:
        ConfigError: it cannot be loaded, or the template's file is empty or missing.
    """
    name = cfg.tokenizer or cfg.name
    revision = cfg.tokenizer_revision or (None if cfg.tokenizer else cfg.revision)
    look_for_hub(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=cfg.trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(
            _cannot_load("tokenizer", name, error, "model.tokenizer" if cfg.tokenizer else "model.name")
        ) from error
    if cfg.chat_template is not None:
        tokenizer.chat_template = read_template(cfg.chat_template)
    return tokenizer


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
    look_for_hub(name)
    try:
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and "AutoModelForCausalLM" not in getattr(
            config, "auto_map", {}
        ):
            raise ConfigError(f"{key}={name} is a {config.model_type} model, which is no causal language model")
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
        attention = runtime.attention
        if any_attention and attention == "sdpa" and getattr(config.get_text_config(), "attn_logit_softcapping", None):
            # torch's kernel has no soft cap on attention scores and would leave it out in silence.
            attention = "eager"
        try:
            model = load(attn_implementation=attention)
        except ValueError as error:
            if not any_attention or "attention implementation" not in str(error):
                raise
            logger.warning("%s has no %s attention: eager is used", name, runtime.attention)
            model = load(attn_implementation="eager")
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(_cannot_load("model", name, error, key)) from error
    model.to(runtime.device)  # type: ignore[arg-type]
    return model.eval()


def read_template(text: str) -> str:
    """A template has braces; anything else is the name of a built-in one, or of a file."""
    if "{" in text:
        return text
    if text in TEMPLATES:
        return TEMPLATES[text]
    path = Path(text)
    if not path.is_file():
        raise ConfigError(
            f"model.chat_template={text} is neither a file nor a Jinja template (which has braces) nor one of "
            f"{', '.join(TEMPLATES)}"
        )
    return path.read_text(encoding="utf-8")


def _cannot_load(what: str, name: str, error: Exception, key: str) -> str:
    first = " ".join(str(error).split())
    if "trust_remote_code" in first:
        return f"the {what} of {name} comes with code of its own: read it, then set model.trust_remote_code=true"
    if Path(name).exists():
        return f"the {what} in {name} cannot be loaded: {first[:300]}"
    if is_offline():
        return (
            f"there is no {what} {name!r} here or on the Hub, as far as can be told without a network "
            f"({hub_address()[0]} cannot be reached, or HF_HUB_OFFLINE is set); check {key} and HF_HOME, or give a "
            "local folder"
        )
    return f"there is no {what} {name!r} here or on the Hub ({first[:200]}); check {key}, the network and HF_HOME"
