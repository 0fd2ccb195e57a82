"""Fixtures of the learner's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import ARCHITECTURES, make_config, make_tokenizer
from transformers import AutoModelForCausalLM

from shoal.learners.local import LocalLearner
from shoal.learners.model import load_policy
from shoal.runtime import resolve_runtime


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Architecture name to a folder with weights and a tokenizer, made once."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(ARCHITECTURES[name]())
            for parameter in model.parameters():  # away from the initial values, under which all words are alike
                torch.nn.init.normal_(parameter, std=0.2) if parameter.ndim > 1 else None
            model.generation_config.eos_token_id = 1
            made[name] = tmp_path_factory.mktemp(name)
            model.save_pretrained(made[name])
            make_tokenizer().save_pretrained(made[name])
        return made[name]

    return folder


@pytest.fixture
def make_learner(model_folder: Callable[[str], Path]) -> Callable[..., LocalLearner]:
    """A learner of an architecture; keyword arguments are configuration keys with __ for dots.

    `double=True` turns the weights to float64 after loading.
    """

    def make(name: str = "qwen3", *, double: bool = False, steps: int = 10, **keys: Any) -> LocalLearner:
        cfg = make_config(model_folder(name), **keys)
        runtime = resolve_runtime(cfg.runtime, cfg.model)
        policy = load_policy(cfg.model, runtime)
        if double:
            policy.model.double()
        return LocalLearner(policy, cfg, runtime, steps)

    return make


@pytest.fixture
def true_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hugging Face computes norms and eager softmax in float32 whatever the weights' dtype; here in float64.

    Otherwise a float64 model would be no more exact than 1e-7.
    """
    softmax = torch.nn.functional.softmax

    def wide_softmax(x: torch.Tensor, dim: int | None = None, dtype: torch.dtype | None = None, **_: Any) -> Any:
        return softmax(x, dim=dim, dtype=None if x.dtype == torch.float64 else dtype)

    monkeypatch.setattr(torch.nn.functional, "softmax", wide_softmax)
    to, wide = torch.Tensor.to, (torch.float32,)

    def wide_to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.dtype == torch.float64 and (args == wide or kwargs.get("dtype") is torch.float32):
            return self
        return to(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", wide_to)
    # Of everything: some versions multiply matrices of positions and frequencies, which must have one dtype.
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
