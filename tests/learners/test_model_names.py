"""Whatever is named as a model is that model in every part: the policy, each engine's arguments, each reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import make_config
from transformers import AutoModelForCausalLM

from shoal.config import ShoalConfig
from shoal.engines.vllm.arguments import policy_arguments
from shoal.learners.model import Policy, load_policy
from shoal.models.info import ModelInfo
from shoal.references.model import ModelReference
from shoal.references.vllm import reference_arguments
from shoal.runtime import resolve_runtime

Folder = Callable[[str], Path]
IDS = torch.arange(2, 20)[None]


def load(cfg: ShoalConfig) -> Policy:
    return load_policy(cfg.model, resolve_runtime(cfg.runtime, cfg.model))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.fixture
def adapter(model_folder: Folder, tmp_path: Path) -> Path:
    """An adapter folder whose adapter changes its base."""
    policy = load(make_config(model_folder("llama"), model__train="lora", model__lora__r=4))
    for name, weight in policy.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    policy.model.save_pretrained(tmp_path / "adapter")
    policy.tokenizer.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("kind", ["full", "adapter"])
@pytest.mark.parametrize("named", ["model.name", "reference.name"])
def test_a_folder_is_the_same_model_in_the_policy_the_engines_and_the_references(
    model_folder: Folder, adapter: Path, tmp_path: Path, kind: str, named: str
):
    base = model_folder("llama")
    folder = base if kind == "full" else adapter
    train = {"model__train": "lora", "model__lora__r": 4} if kind == "adapter" else {}
    expected = logits(load(make_config(folder, **train)).model)
    assert torch.allclose(expected, logits(load(make_config(base)).model)) == (kind == "full")
    # Named as the policy, the references are the policy at the start; else the policy is another model.
    cfg = make_config(folder, **train) if named == "model.name" else make_config(base, reference__name=str(folder))
    runtime = resolve_runtime(cfg.runtime, cfg.model)
    policy = load(cfg)
    for engine in ("vllm", "vllm_server"):
        cfg.engine.kind = engine
        # An engine starts from the base and is given the weights by the sync.
        assert policy_arguments(cfg, policy.info, runtime).model == str(base)
    launched = reference_arguments(cfg, policy.info, runtime, tmp_path / "logs").model
    references = [ModelReference(policy, cfg, runtime).own.model, AutoModelForCausalLM.from_pretrained(launched)]
    for model in references:
        torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("reference", "expected"),
    [({}, ("org/policy", "v1")), ({"name": "org/other", "revision": "v2"}, ("org/other", "v2"))],
)
def test_a_revision_goes_with_the_name_that_it_was_given_for(
    tmp_path: Path, reference: dict[str, str], expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    cfg = make_config(tmp_path, **{f"reference__{key}": value for key, value in reference.items()})
    cfg.model.name, cfg.model.revision = "org/policy", "v1"
    tokenizer = SimpleNamespace(name_or_path="org/policy")
    info = ModelInfo("org/policy", "v1", None, tokenizer, vocabulary=48, max_positions=256)
    runtime = resolve_runtime(cfg.runtime, make_config(tmp_path).model)
    arguments = policy_arguments(cfg, info, runtime)
    assert (arguments.model, arguments.revision) == ("org/policy", "v1")
    found = reference_arguments(cfg, info, runtime, tmp_path)
    assert (found.model, found.revision) == expected
