"""What follows from runtime.target, and what is refused."""

from __future__ import annotations

import resource

import pytest
import torch

from shoal.config.nodes.model import ModelConfig
from shoal.config.nodes.runtime import RuntimeConfig
from shoal.errors import ConfigError
from shoal.runtime import (
    Runtime,
    native_bf16,
    prepare_allocator,
    prepare_process,
    product_seconds,
    resolve_runtime,
    tune_malloc,
)


def resolve(model: ModelConfig | None = None, **keys: str) -> Runtime:
    return resolve_runtime(RuntimeConfig(**keys), model or ModelConfig())  # type: ignore[arg-type]


@pytest.fixture
def with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch as it answers on a machine with two GPUs; nothing is put on them here."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


@pytest.fixture
def with_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


def test_a_cpu_has_float32_weights_and_multiplies_in_bfloat16_where_it_can():
    runtime = resolve(target="cpu")
    assert (runtime.device.type, runtime.param_dtype, runtime.attention) == ("cpu", torch.float32, "sdpa")
    assert runtime.compute_dtype == (torch.bfloat16 if bf16_pays() else None)
    assert not runtime.master_weights and not runtime.loss_scaling


def bf16_pays() -> bool:
    return native_bf16() and product_seconds(torch.bfloat16) < product_seconds(torch.float32)


@pytest.mark.parametrize(("bf16", "chosen"), [(0.010, torch.bfloat16), (0.020, None), (0.030, None)])
def test_a_cpu_multiplies_in_bfloat16_only_where_a_timed_product_is_faster_and_says_so(
    monkeypatch: pytest.MonkeyPatch, bf16: float, chosen: torch.dtype | None
):
    monkeypatch.setattr("shoal.runtime.native_bf16", lambda: True)
    monkeypatch.setattr("shoal.runtime.product_seconds", lambda dtype: bf16 if dtype is torch.bfloat16 else 0.020)
    runtime = resolve(target="cpu")
    assert runtime.compute_dtype is chosen
    said = "bfloat16, which is faster here" if chosen else "float32, since bfloat16 is not faster here"
    assert [said in note and "107 GFLOP/s in float32" in note for note in runtime.notes] == [True]
    for name, dtype in {"bf16": torch.bfloat16, "none": None}.items():
        asked = resolve(target="cpu", mixed_precision=name)
        assert (asked.compute_dtype, asked.notes) == (dtype, [])


def test_freed_memory_is_kept_for_small_models_only(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shoal.runtime.tune_malloc", lambda: True)
    assert prepare_allocator(RuntimeConfig(), 5_000_000)
    assert not prepare_allocator(RuntimeConfig(), 135_000_000)
    assert not prepare_allocator(RuntimeConfig(tune_malloc=False), 5_000_000)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_linux_gpu_without_cuda_is_an_error():
    with pytest.raises(ConfigError, match="torch sees no CUDA device"):
        resolve(target="linux_gpu")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is a Metal device")
def test_mac_without_metal_says_that_it_uses_the_cpu():
    runtime = resolve(target="mac")
    assert runtime.device.type == "cpu"
    assert runtime.notes[0] == "runtime.target=mac: no Metal device here, so the CPU is used"


@pytest.mark.usefixtures("with_mps")
def test_mac_and_auto_take_metal():
    for target in ("mac", "auto"):
        runtime = resolve(target=target)
        assert (runtime.device.type, runtime.param_dtype, runtime.compute_dtype) == ("mps", torch.float32, None)


@pytest.mark.usefixtures("with_cuda")
def test_cuda_has_bfloat16_weights_with_masters():
    for target in ("linux_gpu", "auto"):
        runtime = resolve(target=target)
        assert (runtime.device, runtime.param_dtype) == (torch.device("cuda", 0), torch.bfloat16)
        assert runtime.compute_dtype is None and runtime.master_weights


@pytest.mark.usefixtures("with_cuda")
def test_float32_weights_on_cuda_compute_under_bfloat16():
    runtime = resolve(ModelConfig(dtype="float32"), target="linux_gpu")
    assert (runtime.param_dtype, runtime.compute_dtype) == (torch.float32, torch.bfloat16)


def test_everything_can_be_set_by_hand():
    runtime = resolve(ModelConfig(attention="eager"), target="cpu", mixed_precision="fp16")
    assert (runtime.attention, runtime.compute_dtype, runtime.loss_scaling) == ("eager", torch.float16, True)
    assert resolve(target="cpu", mixed_precision="none").compute_dtype is None


@pytest.mark.parametrize(
    ("keys", "model", "message"),
    [
        ({"target": "cpu", "device": "cuda:0"}, {}, "is not for runtime.target=cpu"),
        ({"device": "gpu"}, {}, "is no torch device"),
        ({"mixed_precision": "bf16"}, {"dtype": "bfloat16"}, "set model.dtype=float32"),
        ({"target": "cpu"}, {"attention": "flash_attention_2"}, "needs CUDA"),
        ({"target": "cpu"}, {"attention": "varlen"}, "needs CUDA"),
    ],
)
def test_what_cannot_be_is_refused(keys: dict[str, str], model: dict[str, str], message: str):
    with pytest.raises(ConfigError, match=message):
        resolve(ModelConfig(**model), **keys)  # type: ignore[arg-type]


@pytest.mark.usefixtures("with_cuda")
def test_a_device_number_beyond_those_there_are_is_refused():
    assert resolve(device="cuda:1").device.index == 1
    with pytest.raises(ConfigError, match="torch sees 2 such devices"):
        resolve(device="cuda:2")


def test_threads_are_set():
    before = torch.get_num_threads()
    try:
        prepare_process(RuntimeConfig(threads=before + 1, tune_malloc=False))
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_tuned_malloc_keeps_pages_between_large_allocations():
    if not tune_malloc():
        pytest.skip("not glibc")

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(4_000_000).sum()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    # 16 MB are 3906 pages of 4 KiB. The first rounds may take new places, until a free one of the right size is there.
    assert min(faults() for _ in range(20)) < 100
