"""What a run that goes on may change. All other keys take effect from the first resumed step."""

from __future__ import annotations

from pathlib import Path

from shoal.config.keys import value_of
from shoal.config.root import ShoalConfig
from shoal.errors import ConfigError

_WEIGHTS = "the checkpoint has the weights of that model"
_ONCE = "it happens before the first step alone"

FIXED = {
    "run.name": "the run keeps its folder",
    "run.root": "the run keeps its folder; it only says where resume=latest looks",
    "run.seed": "the order of the data and the start of the weights come from it",
    "run.preflight": f"{_ONCE}; run shoal check instead",
    "evaluation.at_start": _ONCE,
    "model.name": _WEIGHTS,
    "model.revision": _WEIGHTS,
    "model.tokenizer": _WEIGHTS,
    "model.tokenizer_revision": _WEIGHTS,
    "model.train": _WEIGHTS,
    "model.lora.r": _WEIGHTS,
    "model.lora.alpha": _WEIGHTS,
    "model.lora.target_modules": _WEIGHTS,
    "model.lora.layers": _WEIGHTS,
    "optimizer.name": "the checkpoint has that optimizer's moments",
    "source.kind": "the checkpoint has that source's position",
}
"""Keys that cannot change once a run has a checkpoint, and why."""


def refuse_changes(saved: ShoalConfig, now: ShoalConfig, folder: Path) -> None:
    """Refuses other values of FIXED keys than a run with a checkpoint was started with.

    Raises:
        ConfigError: names the first key that differs.
    """
    for name, why in FIXED.items():
        before, after = value_of(saved, name), value_of(now, name)
        if before != after and not (name == "run.name" and after is None):  # None: whatever it is called
            raise ConfigError(
                f"{name}={after}: the run in {folder} has {name}={before}, which cannot change on resume ({why}): "
                "leave it out, or start a new run"
            )
