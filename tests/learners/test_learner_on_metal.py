"""The learner's path on Metal, on a machine without it: see refusing_metal.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from refusing_metal import RefusingMetal, has_kernel
from tiny_models import make_batch

from shoal.algorithms import measures
from shoal.learners.local import LocalLearner


def test_the_refusing_device_refuses_what_metal_lacks():
    with RefusingMetal():
        with pytest.raises(TypeError, match="MPS"):
            torch.ones(2).double()
        with pytest.raises(NotImplementedError, match="MPS"):
            torch.linalg.eig(torch.eye(2))
        assert torch.ones(2).cumsum(0).tolist() == [1, 2]
    assert has_kernel("aten::searchsorted.Tensor") and not has_kernel("aten::_linalg_eigvals")


@pytest.mark.parametrize("keys", [{}, {"learner__packing": "off"}, {"model__attention": "eager"}], ids=str)
@pytest.mark.parametrize("name", ["qwen3", "llama", "gemma3", "gpt2"])
def test_an_optimizer_step_and_log_probs_use_nothing_that_metal_lacks(
    make_learner: Callable[..., LocalLearner], name: str, keys: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(measures, "widest_float", lambda device: torch.float32)
    learner, expected = make_learner(name, **keys), make_learner(name, **keys).train(make_batch())
    with RefusingMetal() as metal:
        found = learner.train(make_batch())
    assert any("backward" in one for one in metal.seen), "the backward pass was seen"
    assert found["train/grad_norm"] == pytest.approx(expected["train/grad_norm"], rel=1e-5)
