"""Keys of `runtime`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from effects.made import made_batch
from effects.registry import effect
from shoal.errors import ConfigError
from shoal.runtime import (
    Runtime,
    native_bf16,
    prepare_process,
    product_seconds,
    resolve_runtime,
)


@pytest.fixture
def machine(monkeypatch):
    """torch's answers about the machine; nothing is put on its devices."""

    def has(gpus: int, metal: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: metal)

    return has


@pytest.fixture
def resolved(settings):
    def resolve(changes: dict[str, str]) -> Runtime:
        cfg = settings({"runtime.mixed_precision": "auto", **changes})
        return resolve_runtime(cfg.runtime, cfg.model)

    return resolve


@effect("runtime.target")
def test_the_target_decides_the_device(settings, machine, resolved):
    machine(gpus=2)
    devices = {name: str(resolved({"runtime.target": name}).device) for name in ("auto", "linux_gpu", "mac", "cpu")}
    assert devices == {"auto": "cuda:0", "linux_gpu": "cuda:0", "mac": "cpu", "cpu": "cpu"}
    machine(gpus=0, metal=True)
    assert str(resolved({"runtime.target": "mac"}).device) == "mps"
    machine(gpus=0)
    with pytest.raises(ConfigError, match="torch sees no CUDA device"):
        resolved({"runtime.target": "linux_gpu"})


@effect("runtime.device")
def test_the_device_can_be_named(settings, machine, resolved):
    machine(gpus=2)
    assert str(resolved({"runtime.target": "auto", "runtime.device": "cuda:1"}).device) == "cuda:1"
    assert str(resolved({"runtime.target": "auto", "runtime.device": "cpu"}).device) == "cpu"
    with pytest.raises(ConfigError, match=r"runtime\.device=cuda:2: torch sees 2 such devices"):
        resolved({"runtime.target": "auto", "runtime.device": "cuda:2"})


@effect("runtime.mixed_precision")
def test_mixed_precision_rounds_matrix_products(settings, make_learner):
    found, dtypes, scales = {}, {}, {}
    faster = native_bf16() and product_seconds(torch.bfloat16) < product_seconds(torch.float32)
    for name in ("none", "bf16", "fp16", "auto"):
        cfg = settings({"runtime.mixed_precision": name})
        learner = make_learner(cfg)
        found[name] = learner.train(made_batch(cfg))["train/grad_norm"]
        dtypes[name] = learner.runtime.compute_dtype
        scales[name] = learner.optimizer.scaler.is_enabled()
    assert dtypes == {
        "none": None,
        "bf16": torch.bfloat16,
        "fp16": torch.float16,
        "auto": torch.bfloat16 if faster else None,
    }
    assert scales == {"none": False, "bf16": False, "fp16": True, "auto": False}
    # 8 and 11 bits of mantissa against 24.
    assert 1e-5 < abs(found["bf16"] / found["none"] - 1) < 0.1
    assert 1e-6 < abs(found["fp16"] / found["none"] - 1) < 0.01
    assert found["bf16"] != found["fp16"]


@effect("runtime.threads")
def test_torch_gets_so_many_threads(settings):
    for threads in (1, 2):
        prepare_process(settings({"runtime.threads": threads}).runtime)
        assert torch.get_num_threads() == threads
    prepare_process(settings({"runtime.threads": 0}).runtime)
    assert torch.get_num_threads() == 2, "0 leaves them alone"


COUNT_FAULTS = """
import json, resource, sys
import torch
from shoal.config.nodes.runtime import RuntimeConfig
from shoal.runtime import prepare_allocator

def page_faults():
    torch.ones(2**23)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**23)  # 32 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

counts = []
for value in sys.argv[1:]:
    prepare_allocator(RuntimeConfig(tune_malloc=value == "1"), 1000)
    counts.append(page_faults())
print(json.dumps(counts))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
@effect("runtime.tune_malloc")
def test_freed_memory_is_kept_for_the_next_step(settings):
    """In a process of its own, since what other tests have freed would be used again in both ways."""
    values = [settings({"runtime.tune_malloc": value}).runtime.tune_malloc for value in (False, True)]
    words = [sys.executable, "-c", COUNT_FAULTS, *map(str, map(int, values))]
    given_back, kept = json.loads(subprocess.run(words, capture_output=True, check=True, timeout=120).stdout)
    # Pages of 4 KiB, or huge ones of 2 MiB: at least 16 a tensor.
    assert given_back >= 5 * 16
    assert kept < given_back / 4
