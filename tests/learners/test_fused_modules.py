"""What stands in the place of a model's own norms, rotations, MLPs and adapters on CUDA."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import gradient, make_batch, relative

from shoal.learners.cuda.lora import _LeanAdapter, lighten
from shoal.learners.cuda.norm import _FusedNorm, fuse
from shoal.learners.cuda.pointwise import ROTATE, _FusedMLP
from shoal.learners.cuda.pointwise import fuse as fuse_pointwise
from shoal.learners.local import LocalLearner


@pytest.mark.parametrize(("name", "fused"), [("qwen3", 9), ("llama", 5), ("mistral", 5), ("gemma3", 0), ("gpt2", 0)])
def test_a_fused_norm_has_the_gradient_of_the_models_own(
    make_learner: Callable[..., LocalLearner], name: str, fused: int
):
    learner = make_learner(name, learner__packing="off")
    fuse(learner.policy.model)
    assert sum(isinstance(one, _FusedNorm) for one in learner.policy.model.modules()) == fused
    batch = make_batch()
    assert relative(gradient(learner, batch), gradient(make_learner(name, learner__packing="off"), batch)) < 1e-4


@pytest.mark.parametrize(("name", "fused"), [("qwen3", 2), ("llama", 2), ("mistral", 2), ("gemma3", 0), ("gpt2", 0)])
def test_fused_rotations_and_mlps_have_the_gradient_of_the_models_own(
    make_learner: Callable[..., LocalLearner], name: str, fused: int, monkeypatch: pytest.MonkeyPatch
):
    batch = make_batch()
    expected = gradient(make_learner(name, learner__packing="off"), batch)
    learner = make_learner(name, learner__packing="off")
    family = sys.modules[type(learner.policy.causal_lm).__module__]
    if hasattr(family, ROTATE):
        monkeypatch.setattr(family, ROTATE, getattr(family, ROTATE))  # put back after the test
    fuse_pointwise(learner.policy.causal_lm)
    assert sum(isinstance(one, _FusedMLP) for one in learner.policy.model.modules()) == fused
    assert relative(gradient(learner, batch), expected) < 1e-5


@pytest.mark.parametrize("name", ["qwen3", "llama", "gemma3"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.03)])
def test_lean_adapters_have_the_gradient_of_pefts(
    make_learner: Callable[..., LocalLearner], name: str, dtype: str, tolerance: float
):
    keys: dict[str, Any] = {"learner__packing": "off", "model__train": "lora", "model__dtype": dtype}
    torch.manual_seed(0)
    theirs = make_learner(name, **keys)
    torch.manual_seed(0)
    mine = make_learner(name, **keys)
    lighten(mine.policy.model)
    assert sum(isinstance(one, _LeanAdapter) for one in mine.policy.model.modules()) == 14
    batch = make_batch()
    assert relative(gradient(mine, batch), gradient(theirs, batch)) < tolerance
    # After a step B is not 0 any more, so that A has a gradient too.
    assert relative(gradient(mine, batch), gradient(theirs, batch)) < tolerance


def test_lean_adapters_give_way_to_pefts_own_where_it_does_more(make_learner: Callable[..., LocalLearner]):
    model = make_learner("qwen3", model__train="lora").policy.model
    layer: Any = next(one for one in model.modules() if hasattr(one, "lora_variant"))
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    lighten(model)
    x = torch.randn(3, 32)
    with_adapter = layer(x)
    with model.disable_adapter():
        assert torch.equal(layer(x), layer.base_layer(x))
    layer.lora_dropout["default"] = torch.nn.Dropout(0.5)
    assert torch.allclose(layer(x), with_adapter, atol=1e-5), "in evaluation mode nothing is dropped"
    layer.train()
    assert not torch.allclose(layer(x), with_adapter, atol=1e-3)
    layer.eval()
    layer.merge()
    assert torch.allclose(layer(x), with_adapter, atol=1e-4)
