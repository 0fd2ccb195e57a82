"""What only a CUDA device can show: bfloat16 weights with masters, flash attention, loss scaling on the device."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import gradient, make_batch, relative

from shoal.learners.local import LocalLearner

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
Make = Callable[..., LocalLearner]
GPU: dict[str, Any] = {"runtime__target": "linux_gpu", "runtime__mixed_precision": "auto"}


@pytest.mark.parametrize(
    "keys",
    [{}, {"model__dtype": "float32"}, {"model__dtype": "float32", "runtime__mixed_precision": "fp16"}],
    ids=["bf16 weights", "bf16 autocast", "fp16 autocast"],
)
def test_sixteen_bits_on_a_gpu_stay_near_float32_on_a_cpu(make_learner: Make, keys: dict[str, Any]):
    batch = make_batch()
    found = gradient(make_learner(**{**GPU, **keys}), batch).cpu()
    assert relative(found, gradient(make_learner(), batch)) < 0.1


def test_float32_on_a_gpu_packed_and_padded_have_equal_gradients(make_learner: Make):
    keys = {**GPU, "model__dtype": "float32", "runtime__mixed_precision": "none"}
    batch = make_batch()
    packed, padded = (gradient(make_learner(**keys, learner__packing=one), batch) for one in ("on", "off"))
    assert relative(packed, padded) < 1e-4
    assert relative(packed.cpu(), gradient(make_learner(), batch)) < 1e-3


@pytest.mark.skipif(find_spec("flash_attn") is None, reason="flash-attn is not installed")
@pytest.mark.parametrize("name", ["qwen3", "llama", "mistral"])
def test_flash_attention_on_flat_rows_gives_the_gradient_of_sdpa(make_learner: Make, name: str):
    batch = make_batch()
    flash, sdpa = (
        make_learner(name, **GPU, model__attention=one, learner__packing="on") for one in ("flash_attention_2", "sdpa")
    )
    assert all(len(one.until) == 1 for one in flash.passes.pack(batch.sequences))
    assert relative(gradient(flash, batch), gradient(sdpa, batch)) < 0.1


def test_training_on_a_gpu_resumes(make_learner: Make, tmp_path: Path):
    first, second = make_learner(**GPU), make_learner(**GPU)
    first.train(make_batch())
    first.save(tmp_path)
    second.load(tmp_path)
    expected, found = first.train(make_batch(seed=1)), second.train(make_batch(seed=1))
    np.testing.assert_allclose(found["train/grad_norm"], expected["train/grad_norm"], rtol=1e-3)
