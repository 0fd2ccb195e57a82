"""What is known of a model without its weights: architecture, tokenizer, lengths, end ids and LoRA targets.

Who needs no more than this loads no weights: the dry run, and whoever directs learners and engines in other processes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from shoal.config.nodes.model import LoraConfig, ModelConfig
from shoal.errors import ConfigError
from shoal.models.adapters import ADAPTER_CONFIG, adapter_base, refuse_unused_settings, whole_model
from shoal.models.loading import (
    generation_ends,
    load_tokenizer,
    read_architecture,
    refuse_foreign_tokenizer,
    refuse_revision_of_folder,
)

MANY_POSITIONS = 2**20
ALL_LINEAR = "all-linear"  # PEFT's word for every linear layer but the head


@dataclass(frozen=True)
class AdapterInfo:
    """A LoRA adapter: its rank, the names of the layers it is for, and whether it changes the head.

    `targets` are the last parts of layers' names, sorted; none where the adapter's file has a pattern.
    `layers` are the full names of the layers that it changes.
    """

    rank: int
    targets: tuple[str, ...]
    layers: tuple[str, ...]
    on_head: bool


@dataclass(frozen=True)
class ModelInfo:
    """A model without its weights.

    `name` and `revision` are those of the whole model: of an adapter's folder its base. `architecture` is transformers'
    config. `vocabulary` counts ids that both the tokenizer and the model know; `max_positions` the tokens that the
    model can hold. A completion ends with one of `end_ids`. `lora` is set where an adapter is trained.
    """

    name: str
    revision: str | None
    architecture: Any
    tokenizer: Any
    vocabulary: int
    max_positions: int
    end_ids: tuple[int, ...] = ()
    trust_remote_code: bool = False
    lora: LoraConfig | None = None
    adapter_folder: str | None = None

    @cached_property
    def skeleton(self) -> Any:
        """The model on the `meta` device: every layer with its shape, and no weights."""
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(self.architecture, trust_remote_code=self.trust_remote_code)

    @cached_property
    def adapter(self) -> AdapterInfo | None:
        """The adapter that is trained, a new one or the one of a folder; None where all weights are trained.

        Raises:
            ConfigError: model.lora names layers that the model has not, or the head where it is the embeddings too.
        """
        if self.lora is None:
            return None
        if self.adapter_folder is not None:
            saved = json.loads((Path(self.adapter_folder) / ADAPTER_CONFIG).read_text(encoding="utf-8"))
            rank, targets, layers = saved["r"], saved["target_modules"], saved.get("layers_to_transform")
            if targets == ALL_LINEAR:
                targets = linear_names(self.skeleton)
            layers = [layers] if isinstance(layers, int) else layers
        else:
            rank, layers = self.lora.r, self.lora.layers
            targets = self.lora.target_modules or linear_names(self.skeleton)
        changed = adapted_layers(self.skeleton, targets, layers or ())
        if self.adapter_folder is None:
            self._refuse_unknown_layers(targets, changed)
        head = self.skeleton.get_output_embeddings()
        on_head = any(self.skeleton.get_submodule(name) is head for name in changed)
        if on_head and head.weight is self.skeleton.get_input_embeddings().weight:
            raise ConfigError(TIED_HEAD)
        names = () if isinstance(targets, str) else tuple(sorted(targets))
        return AdapterInfo(rank, names, tuple(changed), on_head)

    def _refuse_unknown_layers(self, targets: Collection[str], changed: Collection[str]) -> None:
        known = f"its linear layers are {', '.join(linear_names(self.skeleton)) or 'none'}"
        names = [name for name, _ in self.skeleton.named_modules()]
        for target in targets:
            if not any(_is_named(name, target) for name in names):
                raise ConfigError(f"model.lora.target_modules: {self.name} has no layer {target!r}; {known}")
        if not changed:
            layers = f" in the layers {self.lora.layers}" if self.lora and self.lora.layers else ""
            raise ConfigError(f"model.lora: {self.name} has nothing to adapt{layers}; {known}")
        for layer in self.lora.layers if self.lora else ():
            if layer not in map(_layer_of, changed):
                raise ConfigError(f"model.lora.layers: {self.name} has nothing to adapt in layer {layer}; {known}")

    def count_parameters(self) -> tuple[int, int]:
        """All parameters, and those of linear layers other than the head."""
        head = self.skeleton.get_output_embeddings()
        linear = (one for one in self.skeleton.modules() if isinstance(one, nn.Linear) and one is not head)
        return sum(one.numel() for one in self.skeleton.parameters()), sum(one.weight.numel() for one in linear)

    def adapter_parameters(self) -> int:
        """Parameters of the adapter: rank times (inputs + outputs) of each linear layer that it changes; 0 without."""
        if self.adapter is None:
            return 0
        changed = (self.skeleton.get_submodule(name) for name in self.adapter.layers)
        shapes = (one.in_features + one.out_features for one in changed if isinstance(one, nn.Linear))
        return self.adapter.rank * sum(shapes)


def read_info(cfg: ModelConfig) -> ModelInfo:
    """What `cfg` names, read from config.json, the tokenizer's files and generation_config.json.

    Raises:
        ConfigError: one line on what is missing or does not fit together.
    """
    name, revision = whole_model(cfg.name, cfg.revision)
    if cfg.revision:
        refuse_revision_of_folder(name, cfg.revision, "model.revision")
    tokenizer = load_tokenizer(cfg)
    architecture = read_architecture(name, revision, cfg.trust_remote_code)
    ends = {*generation_ends(name, revision, architecture), getattr(tokenizer, "eos_token_id", None)}
    if adapter_base(cfg.name) is not None:
        refuse_unused_settings(cfg.name, cfg.lora)
    info = describe(architecture, tokenizer, ends, cfg, name, revision)
    if not info.end_ids:
        raise ConfigError(
            f"model.name={cfg.name}: neither the tokenizer nor the model's generation_config names an end-of-sequence "
            "id, so no completion could ever stop; set eos_token in the tokenizer's files"
        )
    refuse_foreign_tokenizer(cfg.name, tokenizer, architecture.get_text_config().vocab_size)
    _ = info.adapter  # refuses names of layers that are not there
    return info


def describe(
    architecture: Any,
    tokenizer: Any,
    ends: Collection[int | None],
    cfg: ModelConfig | None = None,
    name: str = "",
    revision: str | None = None,
) -> ModelInfo:
    """The model of this architecture and tokenizer, trained as `cfg` says; fully without one."""
    cfg = cfg or ModelConfig()
    text = architecture.get_text_config()
    return ModelInfo(
        name=name,
        revision=revision,
        architecture=architecture,
        tokenizer=tokenizer,
        vocabulary=min(len(tokenizer), text.vocab_size) if tokenizer is not None else text.vocab_size,
        max_positions=getattr(text, "max_position_embeddings", None) or MANY_POSITIONS,
        end_ids=tuple(sorted(one for one in ends if one is not None)),
        trust_remote_code=cfg.trust_remote_code,
        lora=cfg.lora if cfg.train == "lora" else None,
        adapter_folder=cfg.name if adapter_base(cfg.name) is not None else None,
    )


TIED_HEAD = (
    "the adapter changes the head, which shares its weight with the embeddings in this model: leave it out of "
    "model.lora.target_modules"
)


def linear_names(model: Any) -> list[str]:
    """Last parts of the names of all linear layers but the head, sorted."""
    head = model.get_output_embeddings()
    found = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    return sorted(found)


def adapted_layers(model: Any, targets: Collection[str] | str, layers: Collection[int]) -> list[str]:
    """Names of the modules that PEFT adapts: those that `targets` names (or matches, as one pattern), in the decoder
    layers of these indices; in all where there are none."""
    found = []
    for name, _ in model.named_modules():
        layer = _layer_of(name)
        if isinstance(targets, str):
            wanted = re.fullmatch(targets, name) is not None
        else:
            wanted = any(_is_named(name, target) for target in targets)
        if wanted and (not layers or layer in layers):
            found.append(name)
    return found


def _layer_of(module: str) -> int | None:
    return next((int(part) for part in module.split(".") if part.isdigit()), None)


def _is_named(module: str, target: str) -> bool:
    return module == target or module.endswith(f".{target}")
