"""torch's own RMSNorm in the place of a model's, as on CUDA."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tiny_models import gradient, make_batch, relative

from shoal.learners.cuda.norm import _FusedNorm, fuse
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
