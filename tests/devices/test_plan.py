"""The device plan over made-up machines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.config import ShoalConfig
from shoal.config.keys import set_value
from shoal.config.validate import validate
from shoal.devices.plan import Device, plan_devices
from shoal.devices.visible import visible_entries
from shoal.errors import ConfigError

GIB = 2**30
SERVER = {"engine.kind": "vllm_server", "weight_sync.kind": "broadcast"}
PROCESSES = {"engine.processes": 2, "weight_sync.kind": "broadcast"}
KL = {"algorithm.kl_coef": 0.1}


def configured(changes):
    cfg = ShoalConfig()
    for name, value in changes.items():
        set_value(cfg, name, value)
    validate(cfg)
    return cfg


def gpus(count, entries=None):
    names = entries or [str(index) for index in range(count)]
    return [Device(index, name, "made up", 80 * GIB) for index, name in enumerate(names)]


def placed(count, changes, **more):
    plan = plan_devices(configured(changes), gpus(count), "cuda", **more)
    return plan.learner, plan.engine, plan.reference


LAYOUTS = {
    "alone": (1, {}, ((0,), ((0,),), ())),
    "the learner's reference": (2, KL, ((0,), ((0,),), (0,))),
    "a reference of its own": (2, {**KL, "reference.num_devices": 1}, ((0,), ((0,),), (1,))),
    "one server on the last": (4, SERVER, ((0,), ((3,),), ())),
    "two servers": (3, {**SERVER, "engine.vllm.servers": 2}, ((0,), ((2,), (1,)), ())),
    "servers that share": (2, {**SERVER, "engine.vllm.servers": 2}, ((0,), ((1,), (1,)), ())),
    "all on the only one": (1, SERVER, ((0,), ((0,),), ())),
    "wide servers": (
        5,
        {**SERVER, "engine.vllm.servers": 2, "engine.vllm.tensor_parallel": 2},
        ((0,), ((3, 4), (1, 2)), ()),
    ),
    "all three apart": (3, {**SERVER, **KL, "reference.kind": "vllm_launch"}, ((0,), ((2,),), (1,))),
    "no room for the reference": (2, {**SERVER, **KL, "reference.kind": "vllm_launch"}, ((0,), ((1,),), (0,))),
    "counts": (
        6,
        {
            **SERVER,
            **KL,
            "engine.vllm.servers": 4,
            "learner.num_devices": 1,
            "engine.num_devices": 2,
            "reference.num_devices": 1,
        },
        ((0,), ((4,), (3,), (4,), (3,)), (1,)),
    ),
    "by hand": (
        4,
        {**SERVER, **KL, "learner.devices": [2], "engine.devices": [0], "reference.devices": [1]},
        ((2,), ((0,),), (1,)),
    ),
    "the learner goes round what was given": (2, {**SERVER, "engine.devices": [0]}, ((1,), ((0,),), ())),
    "shared by hand": (2, {**SERVER, "learner.devices": [1], "engine.devices": [1]}, ((1,), ((1,),), ())),
    "processes": (3, {**PROCESSES, "engine.processes": 3}, ((0,), ((2,), (1,), (2,)), ())),
    # Each server takes more GPUs than this machine has: nodes have them.
    "on nodes": (1, {**SERVER, "cluster.kind": "ray", "engine.vllm.tensor_parallel": 4}, ((0,), (), ())),
    "endpoints": (2, {**SERVER, "engine.vllm.endpoints": ["http://h:1"]}, ((0,), (), ())),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_parts_are_placed(case):
    count, changes, expected = LAYOUTS[case]
    assert placed(count, changes) == expected


def test_a_named_device_is_the_learners():
    assert placed(3, {"runtime.device": "cuda:2", **SERVER}, first=2) == ((2,), ((1,),), ())


REFUSED = {
    "missing": (
        2, {**SERVER, "engine.devices": [4]}, r"engine\.devices=\[4\]: this process sees 2 GPUs .*: set",
        {"engine.devices": [1]},
    ),
    "too many": (
        3,
        {**SERVER, **KL, "engine.vllm.servers": 3, "engine.num_devices": 3, "reference.num_devices": 1},
        r"beside the learner are 2 of the 3 GPUs .*: set",
        {"engine.num_devices": 1},
    ),
    "no room for one": (1, {**SERVER, "engine.num_devices": 1}, "are 0 of the 1 GPUs", {"engine.num_devices": 0}),
    "too wide": (2, {**SERVER, "engine.vllm.tensor_parallel": 4}, "sees 2 GPUs", {"engine.vllm.tensor_parallel": 2}),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_names_a_change_that_works(case):
    count, changes, said, remedy = REFUSED[case]
    with pytest.raises(ConfigError, match=said) as refused:
        placed(count, changes)
    for name, value in remedy.items():
        assert f"set {name}={value}" in str(refused.value)
    placed(count, {**changes, **remedy})


IMPOSSIBLE = [
    ({"learner.num_devices": 2}, {"learner.num_devices": 1}),
    ({"learner.devices": [0, 1]}, {"learner.devices": [0]}),
    ({"learner.devices": [0], "learner.num_devices": 1}, {"learner.num_devices": 0}),
    ({"engine.num_devices": 2}, PROCESSES),
    ({**PROCESSES, "engine.num_devices": 3}, {"engine.processes": 3}),
    ({"engine.devices": [1]}, PROCESSES),
    ({**SERVER, "engine.num_devices": 3, "engine.vllm.servers": 2}, {"engine.vllm.servers": 3}),
    ({**SERVER, "engine.num_devices": 3, "engine.vllm.servers": 2, "engine.vllm.tensor_parallel": 2},
     {"engine.num_devices": 4}),
    ({**SERVER, "engine.devices": [1], "engine.vllm.endpoints": ["http://h:1"]}, {"engine.devices": []}),
    ({**SERVER, "engine.devices": [1, 1], "engine.vllm.servers": 2}, {"engine.devices": [0, 1]}),
    ({"learner.devices": [-1]}, {"learner.devices": [1]}),
    ({"runtime.target": "cpu", "learner.devices": [0]}, {"learner.devices": []}),
    ({"runtime.device": "cuda:1", "learner.devices": [0]}, {"runtime.device": "auto"}),
    ({**KL, "reference.num_devices": 2}, {"reference.num_devices": 1}),
    ({**KL, "reference.num_devices": 1, "model.train": "lora"}, {"reference.num_devices": 0}),
    ({**KL, "reference.num_devices": 2, "reference.kind": "vllm_launch"}, {"reference.tensor_parallel": 2}),
    ({**KL, "reference.num_devices": 1, "reference.kind": "vllm_endpoint", "reference.port": 1},
     {"reference.num_devices": 0}),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "remedy"), IMPOSSIBLE)
def test_what_no_machine_could_do_is_refused_and_its_remedy_accepted(changes, remedy):
    with pytest.raises(ConfigError, match=r"num_devices|devices"):
        configured(changes)
    configured({**changes, **remedy})


def test_in_process_vllm_needs_the_first_device():
    vllm = {"engine.kind": "vllm", "weight_sync.kind": "broadcast"}
    assert placed(2, vllm) == ((0,), ((0,),), ())
    with pytest.raises(ConfigError, match="engine=vllm runs on GPU 0"):
        placed(2, {**vllm, "learner.devices": [1]})


@pytest.mark.parametrize("kind", ["cpu", "mps"])
def test_without_gpus_there_is_one_device_and_none_can_be_named(kind):
    assert plan_devices(configured({**SERVER, "engine.num_devices": 1}), [], kind).learner == ()
    with pytest.raises(ConfigError, match=rf"computes on its {kind}: leave learner\.devices out"):
        plan_devices(configured({"learner.devices": [0]}), [], kind)


def test_children_are_given_entries_of_our_own_list_and_never_new_numbers():
    assert visible_entries({"CUDA_VISIBLE_DEVICES": "2, 5,7"}, 3) == ["2", "5", "7"]
    assert visible_entries({"CUDA_VISIBLE_DEVICES": "GPU-a1,-1,GPU-b2"}, 1) == ["GPU-a1"]
    assert visible_entries({}, 2) == visible_entries({"CUDA_VISIBLE_DEVICES": ""}, 2) == ["0", "1"]
    cfg = configured({**SERVER, **KL, "engine.vllm.servers": 2, "reference.kind": "vllm_launch"})
    plan = plan_devices(cfg, gpus(4, ["2", "5", "GPU-a1", "9"]), "cuda")
    assert [plan.engine_environment(number) for number in range(2)] == [
        {"CUDA_VISIBLE_DEVICES": "9"},
        {"CUDA_VISIBLE_DEVICES": "GPU-a1"},
    ]
    assert plan.reference_environment() == {"CUDA_VISIBLE_DEVICES": "5"}


def test_vllms_on_one_gpu_divide_its_memory():
    two = {**SERVER, "engine.vllm.servers": 2}
    assert plan_devices(configured(two), gpus(3), "cuda").engine_share() == 0.9
    assert plan_devices(configured(two), gpus(2), "cuda").engine_share() == 0.45
    assert plan_devices(configured(two), gpus(1), "cuda").engine_share() == 0.22


@given(
    st.integers(1, 9), st.integers(1, 4), st.integers(1, 2), st.sampled_from(["none", "model", "vllm_launch"]),
    st.integers(0, 8), st.integers(0, 1),
)  # fmt: skip
def test_a_plan_by_numbers_has_no_conflicts_or_is_refused(count, servers, size, reference, engine, apart):
    changes = {**SERVER, "engine.vllm.servers": servers, "engine.vllm.tensor_parallel": size}
    changes |= {"engine.num_devices": min(engine, servers) * size}
    changes |= {} if reference == "none" else {**KL, "reference.kind": reference, "reference.num_devices": apart}
    cfg = configured(changes)
    try:
        plan = plan_devices(cfg, gpus(count), "cuda")
    except ConfigError as error:
        assert "set " in str(error)
        return
    blocks = set(plan.engine)
    assert len(plan.engine) == servers and all(len(block) == size for block in blocks)
    everywhere = [index for block in blocks for index in block]
    assert len(everywhere) == len(set(everywhere)) and set(everywhere) <= set(range(count))
    if cfg.engine.num_devices:
        assert len(everywhere) == cfg.engine.num_devices
        assert not {*everywhere} & {*plan.learner}
        if cfg.reference.num_devices and reference != "none":
            assert not {*plan.reference} & {*everywhere, *plan.learner}
    if count > size:
        assert not {*everywhere} & {*plan.learner}
