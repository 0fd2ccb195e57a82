"""Learners on a CUDA device: 16-bit weights with masters, autocast, loss scaling, every attention implementation."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gpu_device import DEVICE, ON_DEVICE, only_on_cuda
from tiny_models import gradient, make_batch, relative

from shoal.learners.local import LocalLearner

pytestmark = pytest.mark.gpu
Make = Callable[..., LocalLearner]
PRECISIONS: dict[str, dict[str, Any]] = {
    "bf16 weights": {"model__dtype": "bfloat16", "runtime__mixed_precision": "auto"},
    "bf16 products": {"model__dtype": "float32", "runtime__mixed_precision": "bf16"},
    "fp16 products": {"model__dtype": "float32", "runtime__mixed_precision": "fp16"},
}
EXACT = {**ON_DEVICE, "model__dtype": "float32", "runtime__mixed_precision": "none"}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_sixteen_bits_on_a_gpu_stay_near_float32_on_a_cpu(make_learner: Make, precision: str):
    batch = make_batch()
    learner = make_learner(**ON_DEVICE, **PRECISIONS[precision])
    assert learner.runtime.device.type == DEVICE
    assert relative(gradient(learner, batch).cpu(), gradient(make_learner(), batch)) < 0.1


@pytest.mark.parametrize("precision", PRECISIONS)
def test_sixteen_bits_train_and_keep_float32_masters(make_learner: Make, precision: str):
    learner = make_learner(**ON_DEVICE, **PRECISIONS[precision])
    before = {name: one.clone() for name, one in learner.trained_weights().items()}
    metrics = learner.train(make_batch())
    assert np.isfinite(metrics["train/grad_norm"]) and metrics["train/optimizer_steps"] == 1
    after = learner.trained_weights()
    assert {one.dtype for one in after.values()} == {torch.float32}
    moved = [name for name, one in after.items() if not torch.equal(one, before[name])]
    assert len(moved) == len(after)


@pytest.mark.parametrize("attention", ["auto", "eager", "sdpa"])
@pytest.mark.parametrize("name", ["qwen3", "llama", "mistral", "gemma3"])
def test_float32_on_a_gpu_packed_and_padded_have_equal_gradients(make_learner: Make, name: str, attention: str):
    keys = {**EXACT, "model__attention": attention}
    batch = make_batch()
    packed, padded = (gradient(make_learner(name, **keys, learner__packing=one), batch) for one in ("on", "off"))
    assert relative(packed, padded) < 1e-4
    assert relative(packed.cpu(), gradient(make_learner(name), batch)) < 1e-3


@only_on_cuda
@pytest.mark.parametrize("share", [True, False], ids=["prompts shared", "prompts apart"])
@pytest.mark.parametrize("precision", ["bf16 weights", "fp16 products"])
@pytest.mark.parametrize("name", ["qwen3", "llama", "mistral", "gemma3"])
def test_the_varlen_kernel_gives_the_gradient_of_sdpa(make_learner: Make, name: str, precision: str, share: bool):
    batch = make_batch()
    keys = {**ON_DEVICE, **PRECISIONS[precision], "learner__packing": "on", "learner__share_prefix": share}
    varlen, sdpa = (make_learner(name, **keys, model__attention=one) for one in ("auto", "sdpa"))
    assert (varlen.runtime.attention, varlen.passes.forward.attention) == ("varlen", "varlen")
    assert all(one.spans is not None and len(one.until) == 1 for one in varlen.passes.pack(batch.sequences))
    assert relative(gradient(varlen, batch), gradient(sdpa, batch)) < 0.1


@only_on_cuda
@pytest.mark.skipif(find_spec("flash_attn") is None, reason="flash-attn is not installed")
@pytest.mark.parametrize("name", ["qwen3", "llama", "mistral"])
def test_flash_attention_on_flat_rows_gives_the_gradient_of_sdpa(make_learner: Make, name: str):
    batch = make_batch()
    keys = {**ON_DEVICE, **PRECISIONS["bf16 weights"], "learner__packing": "on"}
    flash, sdpa = (make_learner(name, **keys, model__attention=one) for one in ("flash_attention_2", "sdpa"))
    assert all(len(one.until) == 1 for one in flash.passes.pack(batch.sequences))
    assert relative(gradient(flash, batch), gradient(sdpa, batch)) < 0.1


@pytest.mark.parametrize("precision", ["bf16 weights", "fp16 products"])
def test_training_on_a_gpu_resumes(make_learner: Make, precision: str, tmp_path: Path):
    keys = {**ON_DEVICE, **PRECISIONS[precision]}
    first, second = make_learner(**keys), make_learner(**keys)
    first.train(make_batch())
    first.save(tmp_path)
    second.load(tmp_path)
    expected, found = first.train(make_batch(seed=1)), second.train(make_batch(seed=1))
    np.testing.assert_allclose(found["train/grad_norm"], expected["train/grad_norm"], rtol=1e-3)


def test_the_optimizer_of_a_gpu_is_fused(make_learner: Make):
    assert make_learner(**ON_DEVICE).optimizer.optimizer.defaults["fused"]


@only_on_cuda
def test_micro_batches_do_not_wait_for_the_gpu(make_learner: Make):
    """One transfer after the last backward pass is all that an optimizer step waits for."""
    learner = make_learner(**ON_DEVICE, **PRECISIONS["bf16 weights"], learner__micro_batch_tokens=40)
    learner.train(make_batch())  # kernels are made, caches filled
    backward, passes = learner._backward, []

    def watched(*arguments: Any) -> Any:
        passes.append(1)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            return backward(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    learner._backward = watched  # type: ignore[method-assign]
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        learner.train(make_batch())
    assert len(passes) > 1
    ours = [f"{one.filename}:{one.lineno}" for one in found if "synchroniz" in str(one.message)]
    assert not [place for place in ours if "/shoal/" in place]
