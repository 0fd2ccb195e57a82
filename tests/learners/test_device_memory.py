"""Parts that share a GPU, and whether it holds them."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny_models import make_config
from transformers import Qwen3Config

from shoal.cli.dry_run import device_table
from shoal.config.keys import set_value
from shoal.config.validate import validate
from shoal.devices.plan import Device, DevicePlan, plan_devices
from shoal.errors import ConfigError
from shoal.learners.device_memory import device_bytes, refuse_too_much
from shoal.learners.memory_plan import estimate
from shoal.models.info import ModelInfo
from shoal.references import model
from shoal.references.model import ModelReference
from shoal.runtime import Runtime

GIB = 2**30
ARCHITECTURE = Qwen3Config(
    hidden_size=2048, num_hidden_layers=28, intermediate_size=6144, num_attention_heads=16, head_dim=128
)
BIG = ModelInfo("big", None, ARCHITECTURE, None, ARCHITECTURE.vocab_size, 32768)
SERVER = {"engine.kind": "vllm_server", "weight_sync.kind": "broadcast"}


@pytest.fixture
def machine(tmp_path):
    def make(count, gib, changes):
        cfg = make_config(tmp_path)
        for name, value in {"runtime.target": "auto", **changes}.items():
            set_value(cfg, name, value)
        validate(cfg)
        devices = [Device(index, str(index), f"GPU of {gib}", gib * GIB) for index in range(count)]
        plan = plan_devices(cfg, devices, "cuda")
        device = torch.device("cuda", plan.learner[0])
        return cfg, Runtime(device, torch.bfloat16, None, "sdpa", plan=plan)

    return make


def test_parts_on_one_gpu_are_added_up(machine):
    cfg, runtime = machine(2, 80, {**SERVER, "learner.devices": [0], "engine.devices": [0]})
    held = device_bytes(cfg, runtime.plan, estimate(cfg, runtime, BIG))
    assert held[0]["engine"] == round(0.45 * 80 * GIB)
    assert held[0]["learner"] > 0 == sum(held[1].values())


def test_what_does_not_fit_together_is_refused_with_a_change_that_fits(machine):
    shared = {**SERVER, "learner.devices": [0], "engine.devices": [0], "engine.vllm.memory_share": 0.9}
    with pytest.raises(ConfigError, match=r"GPU 0 has 80\.0 GiB, and what shares it takes") as refused:
        refuse_too_much(*machine(2, 80, shared), BIG)
    assert str(refused.value).endswith("set engine.num_devices=0 engine.devices=[1]")
    refuse_too_much(*machine(2, 80, {**shared, "engine.devices": [1]}), BIG)
    # Without a second GPU a smaller share is what works.
    with pytest.raises(ConfigError, match=r"set engine\.vllm\.memory_share=") as refused:
        refuse_too_much(*machine(1, 80, shared), BIG)
    share = float(str(refused.value).rpartition("=")[2])
    refuse_too_much(*machine(1, 80, {**shared, "engine.vllm.memory_share": share}), BIG)
    with pytest.raises(ConfigError, match="use a smaller model"):
        refuse_too_much(*machine(1, 8, shared), BIG)


def test_processes_of_the_engine_count_with_their_weights(machine):
    processes = {"engine.processes": 2, "weight_sync.kind": "broadcast"}
    cfg, runtime = machine(2, 80, processes)
    parts = estimate(cfg, runtime, BIG)
    held = device_bytes(cfg, runtime.plan, parts)
    assert held[1] == {"engine": 2 * (parts["weights"] + parts["kv_cache"])}
    assert [str(runtime.of_engine(number)) for number in range(2)] == ["cuda:1", "cuda:1"]


def test_who_is_alone_is_left_to_the_start_up_check(machine):
    refuse_too_much(*machine(2, 1, SERVER), BIG)


def test_the_table_has_a_row_for_each_gpu(machine):
    cfg, runtime = machine(3, 80, {**SERVER, "engine.vllm.servers": 2})
    rows = list(device_table(cfg, runtime, estimate(cfg, runtime, BIG)))
    assert [row.split("  ")[-3].strip() or row for row in rows[1:]] != []
    assert "learner" in rows[1] and "engine 1" in rows[2] and "engine 0" in rows[3]
    assert rows[3].endswith("73,728  81,920")


def test_a_reference_model_is_put_on_its_own_device(make_learner, monkeypatch):
    learner = make_learner("llama", algorithm__kl_coef=0.1)
    runtime = replace(learner.runtime, plan=DevicePlan("meta", learner=(0,), reference=(0,)))
    # Passes try the model out, which a device without memory cannot.
    monkeypatch.setattr(model, "Passes", lambda policy, cfg, runtime: SimpleNamespace(runtime=runtime))
    reference = ModelReference(learner.policy, learner.cfg, runtime)
    assert {one.device.type for one in reference.own.model.parameters()} == {"meta"}
    assert reference.passes.runtime.device.type == "meta"
