"""Keys of the device plan, on a made-up machine of four GPUs."""

from __future__ import annotations

import pytest

from effects.registry import effect
from shoal.devices.plan import Device, DevicePlan, plan_devices
from shoal.errors import ConfigError

SERVERS = {"engine.kind": "vllm_server", "weight_sync.kind": "broadcast", "engine.vllm.servers": 2}


@pytest.fixture
def planned(settings):
    def plan(changes: dict[str, object]) -> DevicePlan:
        devices = [Device(index, str(index)) for index in range(4)]
        return plan_devices(settings({"runtime.target": "auto", "algorithm.kl_coef": 0.1, **changes}), devices, "cuda")

    return plan


@effect("learner.devices")
def test_the_learner_can_be_placed_by_hand(settings, planned):
    assert planned({}).learner == (0,)
    assert planned({"learner.devices": [2]}).learner == (2,)


@effect("engine.num_devices")
def test_servers_share_fewer_devices(settings, planned):
    assert planned(SERVERS).engine == ((3,), (2,))
    assert planned({**SERVERS, "engine.num_devices": 1}).engine == ((3,), (3,))


@effect("engine.devices")
def test_servers_can_be_placed_by_hand(settings, planned):
    assert planned({**SERVERS, "engine.devices": [1, 2]}).engine == ((1,), (2,))
    assert planned(SERVERS).engine == ((3,), (2,))


@effect("reference.num_devices", "reference.devices")
def test_the_reference_can_have_a_device_of_its_own(settings, planned):
    assert planned({}).reference == (0,)
    assert planned({"reference.num_devices": 1}).reference == (1,)
    assert planned({"reference.devices": [3]}).reference == (3,)


@effect("learner.num_devices")
def test_the_local_learner_takes_one_device(settings):
    settings({"learner.num_devices": 1})
    with pytest.raises(ConfigError, match=r"learner=local trains on one device: set learner\.num_devices=1"):
        settings({"learner.num_devices": 2})
