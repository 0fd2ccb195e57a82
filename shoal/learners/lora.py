"""LoRA adapters through PEFT."""

from __future__ import annotations

from logging import getLogger
from typing import Any

from torch import nn

from shoal.config.model import LoraConfig
from shoal.errors import ConfigError

logger = getLogger(__name__)


def add_lora(model: Any, cfg: LoraConfig) -> Any:
    """PEFT's wrapper around `model`, whose adapter alone is trained.

    Raises:
        ConfigError: PEFT is missing, or the named modules or layers are not there.
    """
    try:
        from peft import LoraConfig as PeftLoraConfig  # noqa: PLC0415 - an optional package
        from peft import get_peft_model  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError("model.train=lora needs PEFT: pip install 'shoal-rl[lora]'") from error
    targets = cfg.target_modules or linear_names(model)
    peft_config = PeftLoraConfig(
        r=cfg.r,
        lora_alpha=cfg.alpha,  # type: ignore[arg-type]
        lora_dropout=cfg.dropout,
        target_modules=targets,
        layers_to_transform=cfg.layers or None,
        task_type="CAUSAL_LM",
    )
    try:
        wrapped = get_peft_model(model, peft_config)
    except ValueError as error:
        raise ConfigError(
            f"model.lora: {' '.join(str(error).split())[:200]}; the linear layers are {', '.join(linear_names(model))}"
        ) from error
    if model.is_gradient_checkpointing:
        # Frozen embeddings would cut the graph that checkpointing recomputes.
        model.enable_input_require_grads()
    return wrapped


def linear_names(model: Any) -> list[str]:
    """Last parts of the names of all linear layers but the head, sorted."""
    head = model.get_output_embeddings()
    found = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    return sorted(found)
