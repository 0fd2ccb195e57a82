"""What a LoRA adapter says of itself: the one in a folder, and the one around a model. PEFT is not needed for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shoal.config.nodes.model import LoraConfig
from shoal.errors import ConfigError

ADAPTER_CONFIG = "adapter_config.json"


def adapter_base(name: str) -> str | None:
    """The model that the adapter in a local folder belongs to; None where `name` is no such folder."""
    file = Path(name) / ADAPTER_CONFIG
    return str(json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"]) if file.is_file() else None


def whole_model(name: str, revision: str | None) -> tuple[str, str | None]:
    """The whole model behind a name, and its revision: of an adapter's folder its base, else the name itself.

    `revision` is the base's where it is given; otherwise the one that the adapter was trained on.
    """
    base = adapter_base(name)
    if base is None:
        return name, revision
    written = json.loads((Path(name) / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    return base, revision or written.get("revision")


def refuse_unused_settings(folder: str, cfg: LoraConfig) -> None:
    """Raises ConfigError where model.lora says other things than the adapter in the folder, which would be ignored."""
    saved = json.loads((Path(folder) / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    names = {"r": "r", "alpha": "lora_alpha", "dropout": "lora_dropout"}
    names |= {"target_modules": "target_modules", "layers": "layers_to_transform"}
    plain = LoraConfig()
    for key, name in names.items():
        wanted, there = getattr(cfg, key), saved.get(name)
        same = sorted(wanted) == sorted(there or []) if isinstance(wanted, list) else wanted == there
        if wanted != getattr(plain, key) and not same:
            raise ConfigError(
                f"model.lora.{key}={wanted} has no effect on the adapter in {folder}, which has {there}: leave it out, "
                "or start from the base model"
            )


def rank_of(wrapped: Any) -> int:
    """The largest rank of a wrapper's adapters."""
    return max(one.r for one in wrapped.peft_config.values())
