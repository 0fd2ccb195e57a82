"""Reading what a model's folder holds beside its weights: its architecture, tokenizer and chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from shoal.config.nodes.model import ModelConfig
from shoal.errors import ConfigError
from shoal.hub import hub_address, is_offline, look_for_hub
from shoal.models.templates import TEMPLATES

# A tokenizer with fewer ids beyond the model's than this has added tokens that no text needs (Gemma 3's image token).
FEW_IDS = 64


def read_architecture(name: str, revision: str | None, trust_remote_code: bool, key: str = "model.name") -> Any:
    """The config.json of a whole model. `key` is the configuration key that errors name.

    Raises:
        ConfigError: it cannot be read, or is no causal language model's.
    """
    look_for_hub(name)
    try:
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(cannot_load("model", name, error, key, revision)) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and "AutoModelForCausalLM" not in getattr(
        config, "auto_map", {}
    ):
        raise ConfigError(f"{key}={name} is a {config.model_type} model, which is no causal language model")
    return config


def load_tokenizer(cfg: ModelConfig) -> Any:
    """The tokenizer, with the configured chat template (a file's content, or the text itself).

    Raises:
        ConfigError: it cannot be loaded, or the template's file is empty or missing.
    """
    name = cfg.tokenizer or cfg.name
    revision = cfg.tokenizer_revision or (None if cfg.tokenizer else cfg.revision)
    if cfg.tokenizer_revision:
        refuse_revision_of_folder(name, cfg.tokenizer_revision, "model.tokenizer_revision")
    look_for_hub(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=cfg.trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        key = "model.tokenizer" if cfg.tokenizer else "model.name"
        where = "model.tokenizer_revision" if cfg.tokenizer_revision else "model.revision"
        raise ConfigError(cannot_load("tokenizer", name, error, key, revision, where)) from error
    if cfg.chat_template is not None:
        tokenizer.chat_template = read_template(cfg.chat_template)
    return tokenizer


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


def generation_ends(name: str, revision: str | None, architecture: Any) -> list[int]:
    """Ids that end a completion beside the tokenizer's own: those of generation_config.json, or of the architecture
    where there is no such file, as from_pretrained has them."""
    try:
        config = GenerationConfig.from_pretrained(name, revision=revision or "main")
    except OSError:
        config = GenerationConfig.from_model_config(architecture)
    found = config.eos_token_id
    return [found] if isinstance(found, int) else list(found or [])


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


def refuse_revision_of_folder(name: str, revision: str, key: str) -> None:
    """Raises ConfigError where a revision is asked of a local folder, which would be read as it is."""
    if Path(name).is_dir():
        raise ConfigError(f"{key}={revision}: {name} is a local folder, which has no revisions; leave it out")


def cannot_load(
    what: str, name: str, error: Exception, key: str, revision: str | None = None, revision_key: str | None = None
) -> str:
    """One line on a model or tokenizer that could not be loaded: why, and what to do. `key` named it, and
    `revision_key` (None: the one beside it) its revision."""
    first = " ".join(str(error).split())
    if "trust_remote_code" in first:
        return f"the {what} of {name} comes with code of its own: read it, then set model.trust_remote_code=true"
    if Path(name).exists():
        return f"the {what} in {name} cannot be loaded: {first[:300]}"
    which = f"{what} {name!r}, revision {revision!r}," if revision else f"{what} {name!r}"
    if revision:
        key = f"{key}, {revision_key or key.rpartition('.')[0] + '.revision'}"
    if is_offline():
        return (
            f"there is no {which} here or on the Hub, as far as can be told without a network "
            f"({hub_address()[0]} cannot be reached, or HF_HUB_OFFLINE is set); check {key} and HF_HOME, or give a "
            "local folder"
        )
    return f"there is no {which} here or on the Hub ({first[:200]}); check {key}, the network and HF_HOME"
