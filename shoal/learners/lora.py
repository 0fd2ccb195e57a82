"""LoRA adapters through PEFT."""

from __future__ import annotations

from collections.abc import Iterator
from logging import getLogger
from typing import Any

import torch
from torch import Tensor, nn

from shoal.config.nodes.model import LoraConfig
from shoal.errors import ConfigError
from shoal.models.info import linear_names

logger = getLogger(__name__)

MISSING = "an adapter (model.train=lora) needs PEFT: pip install 'shoal-rl[lora]'"


def load_adapter(model: Any, folder: str, *, train: bool) -> Any:
    """PEFT's wrapper with the adapter of a folder, to train it on; or the model with the adapter merged into it.

    Raises:
        ConfigError: PEFT is missing, or the adapter does not fit the model.
    """
    try:
        from peft import PeftModel  # noqa: PLC0415 - an optional package
    except ImportError as error:
        raise ConfigError(MISSING) from error
    try:
        wrapped = PeftModel.from_pretrained(model, folder, is_trainable=train)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"the adapter in {folder} does not fit: {' '.join(str(error).split())[:200]}") from error
    if not train:
        return wrapped.merge_and_unload().requires_grad_(True)  # PEFT had frozen the base
    if model.is_gradient_checkpointing:
        model.enable_input_require_grads()
    return wrapped


def add_lora(model: Any, cfg: LoraConfig) -> Any:
    """PEFT's wrapper around `model`, whose adapter alone is trained.

    Raises:
        ConfigError: PEFT is missing, or the named modules or layers are not there.
    """
    try:
        from peft import LoraConfig as PeftLoraConfig  # noqa: PLC0415 - an optional package
        from peft import get_peft_model  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(MISSING) from error
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


def plain_weights(model: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """The model's own parameters, without adapters', by the names that they have without PEFT; tied ones come once."""
    for name, parameter in model.named_parameters():
        if ".lora_" not in name:
            yield name.replace(".base_layer.", "."), parameter


@torch.no_grad()
def merged_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """`plain_weights`, with the active adapters added; a merged copy is made as it is asked for."""
    adapted = adapted_modules(model)
    for name, parameter in plain_weights(model):
        yield name, merged_weight(parameter, adapted.get(name))


def adapted_modules(model: Any) -> dict[str, Any]:
    """The layers that have adapters, by the name of the weight that those change."""
    return {f"{name}.weight": module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}


def merged_weight(parameter: nn.Parameter, module: Any) -> Tensor:
    """A weight with the active adapters of its layer (None: it has none) added, those aside that it holds already."""
    weight = parameter.detach()
    if module is None or module.disable_adapters:
        return weight
    for one in (one for one in module.active_adapters if one in module.lora_A):
        if one not in module.merged_adapters:
            weight = weight + module.get_delta_weight(one).to(weight.dtype)
    return weight


@torch.no_grad()
def adapted_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """The weights that adapters change, adapters added, in float32, by the names that they have without PEFT."""
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            weight = module.get_base_layer().weight.detach().float()
            for one in (one for one in module.active_adapters if one in module.lora_A):
                weight = weight + module.get_delta_weight(one).float()
            yield f"{name}.weight", weight
