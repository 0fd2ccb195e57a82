"""Shoal: group-relative reinforcement learning for language models.

    from shoal import load_config, train, evaluate

    summary = train(load_config("story", ["run.steps=20"]))
    metrics = evaluate(load_config("story", ["model.name=outputs/my_run/model"]))

`load_config(name, overrides)` composes a preset; `train` and `evaluate` take the result, and rewards of your own as
functions of a `Submission`; `verifier` registers a reward under a name, `batched` marks one that takes a step's
submissions at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.api import evaluate, train
    from shoal.config.compose import load_config
    from shoal.rewards.base import Submission, batched, verifier

__all__ = ["Submission", "batched", "evaluate", "load_config", "train", "verifier"]

_MODULES = {
    "load_config": "shoal.config.compose",
    "train": "shoal.api",
    "evaluate": "shoal.api",
    "Submission": "shoal.rewards.base",
    "batched": "shoal.rewards.base",
    "verifier": "shoal.rewards.base",
}


def __getattr__(name: str) -> Any:
    """Imports a public name on first use, so that `import shoal` and the command's help load no torch."""
    if name not in _MODULES:
        raise AttributeError(f"module 'shoal' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
