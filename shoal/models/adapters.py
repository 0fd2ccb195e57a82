"""What a LoRA adapter says of itself: the one in a folder, and the one around a model. PEFT is not needed for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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


def adapts_head(wrapped: Any) -> bool:
    """Whether the adapter changes the head."""
    return hasattr(wrapped.get_base_model().get_output_embeddings(), "lora_A")


def rank_of(wrapped: Any) -> int:
    """The largest rank of a wrapper's adapters."""
    return max(one.r for one in wrapped.peft_config.values())


def adapted_modules(wrapped: Any) -> tuple[str, ...]:
    """Names of the layers that a wrapper's adapter changes; none where it names them by a pattern."""
    [adapter] = wrapped.peft_config.values()
    return () if isinstance(adapter.target_modules, str) else tuple(sorted(adapter.target_modules))
