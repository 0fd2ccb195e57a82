"""What stands in the place of a model's own norms, rotations and MLPs on CUDA."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
from tiny_models import gradient, make_batch, relative

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
