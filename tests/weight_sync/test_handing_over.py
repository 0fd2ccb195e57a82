"""What weight syncs hand over, and what they refuse, without vLLM."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recorded_vllm import RecordedEngine, RecordedVllm
from sync_models import a_batch
from transformers import AutoModelForCausalLM

from shoal.config import ShoalConfig
from shoal.errors import ConfigError, EngineError, ServerDied, TrainingError
from shoal.learners.local import LocalLearner
from shoal.learners.model import load_policy
from shoal.runtime import resolve_runtime
from shoal.types import Segment
from shoal.weight_sync.build import build_server_sync
from shoal.weight_sync.check import SelfCheck
from shoal.weight_sync.shared import find_bridge, views
from shoal.wire.shared import Bridge, adopt_on_cpu, memory_file, share_on_cpu
from shoal.wire.stream import WeightSpec
from shoal.wire.versions import version_in, write_version

PROBE = [Segment([3, 4, 5], [6, 7], [0.0, 0.0], [True, True])]
PACKED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}


@pytest.fixture
def make_learner(small_model: Path) -> Callable[..., LocalLearner]:
    def make(change: Callable[[ShoalConfig], None] = lambda cfg: None) -> LocalLearner:
        cfg = ShoalConfig()
        cfg.model.name = str(small_model)
        cfg.runtime.target, cfg.runtime.mixed_precision = "cpu", "none"
        cfg.optimizer.lr = 0.05
        change(cfg)
        torch.manual_seed(0)
        runtime = resolve_runtime(cfg.runtime, cfg.model)
        return LocalLearner(load_policy(cfg.model, runtime), cfg, runtime, total_steps=10)

    return make


def lora(cfg: ShoalConfig) -> None:
    cfg.model.train = "lora"
    cfg.model.lora.r = 4


def train(learner: LocalLearner) -> None:
    for seed in range(2):
        learner.train(a_batch(seed))


def sync_of(learner: LocalLearner, kind: str, folder: Path, control: RecordedVllm | None = None) -> Any:
    learner.cfg.engine.kind, learner.cfg.weight_sync.kind = "vllm_server", kind
    engine: Any = RecordedEngine(control or RecordedVllm(learner))
    check = SelfCheck(engine, learner, PROBE, every=1, tolerance=1e-4)
    return build_server_sync(learner.cfg, learner, engine, check, folder)


@pytest.mark.parametrize("change", [lambda cfg: None, lora], ids=["full", "lora"])
def test_weights_are_named_as_the_hub_names_them_and_have_adapters_merged(
    make_learner: Callable[..., LocalLearner], small_model: Path, tmp_path: Path, change: Any
):
    learner = make_learner(change)
    train(learner)
    named = dict(learner.named_weights())
    specs = learner.weight_specs()
    assert [(spec.name, spec.shape) for spec in specs] == [(name, tuple(one.shape)) for name, one in named.items()]
    plain = AutoModelForCausalLM.from_pretrained(small_model)
    assert named.keys() == dict(plain.named_parameters()).keys()
    learner.save_merged(tmp_path)
    plain.load_state_dict(named, strict=False)
    written = AutoModelForCausalLM.from_pretrained(tmp_path)
    [expected] = learner.logprobs([Segment([3, 4, 5], [6, 7, 8], [0.0] * 3, [True] * 3)])
    for model in (plain.eval(), written.eval()):
        with torch.no_grad():
            found = model(torch.tensor([[3, 4, 5, 6, 7, 8]])).logits[0, 2:5].log_softmax(-1)
        np.testing.assert_allclose(found[range(3), [6, 7, 8]], expected, atol=1e-5)


def test_a_learner_whose_weights_moved_to_shared_memory_trains_there(
    make_learner: Callable[..., LocalLearner], tmp_path: Path
):
    learner, other = make_learner(), make_learner()
    # As vLLM has them: fused.
    fused: dict[str, torch.Tensor] = {}
    for name, weight in learner.named_weights():
        for whole, parts in PACKED.items():
            if any(f".{part}." in name for part in parts):
                name = name.replace(next(part for part in parts if f".{part}." in name), whole)
        fused[name] = torch.cat([fused[name], weight]) if name in fused else weight.clone()
    bridge = share_on_cpu(fused, tmp_path, "a model", PACKED, "")
    try:
        learner.move_weights(views(learner.weight_specs(), Bridge.read(tmp_path)))
        for one in (learner, other):
            train(one)
        for (name, mine), (_, theirs) in zip(learner.named_weights(), other.named_weights(), strict=True):
            assert torch.equal(mine, theirs), name
        moved = {name: one.clone() for name, one in bridge.tensors().items()}
        q = dict(other.named_weights())["model.layers.0.self_attn.q_proj.weight"]
        assert torch.equal(fused["model.layers.0.self_attn.qkv_proj.weight"][: len(q)], q)
        # A server in place of one that died finds the values as they are.
        fresh = {name: torch.zeros_like(one) for name, one in fused.items()}
        adopt_on_cpu(fresh, tmp_path, "")
        assert all(torch.equal(fresh[name], one) for name, one in moved.items())
    finally:
        memory_file(tmp_path).unlink()


def test_a_single_number_has_a_place_too(tmp_path: Path):
    bridge = share_on_cpu({"scale": torch.tensor(2.0), "norm.weight": torch.ones(3)}, tmp_path, "a model", PACKED, "")
    specs = [WeightSpec("scale", (), "float32"), WeightSpec("norm.weight", (3,), "float32")]
    try:
        assert [tuple(found.shape) for found in views(specs, bridge).values()] == [(), (3,)]
        with pytest.raises(ConfigError, match=r"cannot be mapped: norm\.weight \[\]"):
            views([specs[0], WeightSpec("norm.weight", (), "float32")], bridge)
    finally:
        memory_file(tmp_path).unlink()


@pytest.mark.parametrize("fault", ["a weight without a place", "a parameter that nothing fills", "another shape"])
def test_each_parameter_that_cannot_be_mapped_is_named(
    make_learner: Callable[..., LocalLearner], tmp_path: Path, fault: str
):
    learner = make_learner()
    there = {name: weight.clone() for name, weight in learner.named_weights()}
    if fault == "a weight without a place":
        del there["model.norm.weight"]
    elif fault == "a parameter that nothing fills":
        there["model.extra.weight"] = torch.zeros(3)
    else:
        there["model.norm.weight"] = torch.zeros(5)
    bridge = share_on_cpu(there, tmp_path, "a model", PACKED, "")
    named = "model.extra.weight" if "nothing" in fault else "model.norm.weight"
    try:
        with pytest.raises(ConfigError, match=rf"cannot be mapped: .*{named}.* Use weight_sync=broadcast"):
            views(learner.weight_specs(), bridge)
    finally:
        memory_file(tmp_path).unlink()


def test_a_missing_bridge_says_where_it_was_looked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with pytest.raises(ConfigError, match=r"looked for weight_sync\.bridge and LOGDIR, neither of which is set"):
        find_bridge(None, {})
    with pytest.raises(
        ConfigError, match=r"not found: looked for .*one/shoal_bridge.json \(weight_sync.bridge\), .*two"
    ):
        find_bridge(str(tmp_path / "one"), {"LOGDIR": str(tmp_path / "two")})
    (tmp_path / "vllm_bridge_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="Atropos' example server: start the server with shoal serve vllm --bridge"):
        find_bridge(None, {"LOGDIR": str(tmp_path)})
    Bridge("a model", "cpu", {}, {}).write(tmp_path)
    with pytest.raises(ConfigError, match=r"NUM_INFERENCE_NODES=2: .* use weight_sync=broadcast"):
        find_bridge(None, {"LOGDIR": str(tmp_path), "NUM_INFERENCE_NODES": "2"})
    with caplog.at_level(logging.INFO):
        environment = {"LOGDIR": str(tmp_path), "NUM_INFERENCE_NODES": "0", "MASTER_ADDR": "localhost"}
        assert find_bridge(None, environment) == tmp_path
    assert "MASTER_ADDR not needed" in caplog.text


def test_a_rank_above_the_servers_is_refused_before_training(make_learner: Callable[..., LocalLearner], tmp_path: Path):
    learner = make_learner(lora)
    control = RecordedVllm(learner)
    control.max_lora_rank = 2
    with pytest.raises(ConfigError, match=r"takes adapters of rank 2 at most, but model.lora.r=4"):
        sync_of(learner, "lora", tmp_path, control)
    control.max_lora_rank = 0
    with pytest.raises(ConfigError, match="was started without --enable-lora"):
        sync_of(learner, "lora", tmp_path, control)


def test_each_adapter_has_a_path_of_its_own_and_says_its_version(
    make_learner: Callable[..., LocalLearner], tmp_path: Path
):
    learner = make_learner(lora)
    control = RecordedVllm(learner)
    control.max_lora_rank = 4
    sync = sync_of(learner, "lora", tmp_path, control)
    sync.publish(0).wait()
    sync.publish(3).wait()
    first, second = control.all("load_adapter")
    assert first != second and not first.exists()
    assert version_in(second) == 3 and (second / "adapter_config.json").is_file()
    assert not (second / "tokenizer.json").exists()
    sync.close()
    assert not second.exists()


def test_an_update_pauses_swaps_resets_and_resumes_in_this_order(
    make_learner: Callable[..., LocalLearner], tmp_path: Path
):
    learner = make_learner()
    sync = sync_of(learner, "restart", tmp_path)
    sync.publish(0).wait()
    control = sync.engine.replicas[0]
    control.asked.clear()
    seconds = sync.publish(1).wait()
    path = tmp_path / "weight_sync" / "version_1"
    assert [call[0] for call in control.asked] == ["pause", "restart", "reset_prefix_cache", "resume", "shoal_status"]
    assert control.all("restart") == [path] and version_in(path) == 1
    assert list(seconds) == ["prepare", "pause", "swap", "reset", "resume", "confirm", "self_check"]
    assert sync.publish(1).wait() == {}  # it is there already


def test_a_server_that_died_is_started_again_and_the_update_is_done_again(
    make_learner: Callable[..., LocalLearner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sync = sync_of(make_learner(), "restart", tmp_path)
    sync.publish(0).wait()
    control, dead = sync.engine.replicas[0], [1]

    def pause(mode: str) -> None:
        if dead:
            raise EngineError("the server does not answer")

    monkeypatch.setattr(control, "pause", pause)
    with pytest.raises(EngineError, match="does not answer"):
        sync.publish(1)
    monkeypatch.setattr(sync.engine, "revive", dead.pop)
    assert sync.publish(1).version == control.held == 1


@pytest.mark.parametrize("moment", ["confirm", "check"])
def test_a_server_that_dies_just_after_its_update_is_started_again_and_the_update_is_done_again(
    make_learner: Callable[..., LocalLearner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
):
    sync = sync_of(make_learner(), "restart", tmp_path)
    sync.publish(0).wait()
    control = sync.engine.replicas[0]
    method = {"confirm": "call_workers", "check": "logprobs"}[moment]
    whole, revived = getattr(control, method), []

    def dying(*arguments: object) -> object:
        monkeypatch.setattr(control, method, whole)
        raise ServerDied("the server does not answer")

    monkeypatch.setattr(control, method, dying)
    monkeypatch.setattr(sync.engine, "revive", lambda: revived.append(1) or 1)
    assert sync.publish(1).wait().keys() >= {"confirm", "self_check"}
    assert revived and sync.check.checked == {0, 1}
    assert len(control.all("restart")) == 2  # type: ignore[attr-defined]


def test_an_update_that_fails_is_tried_once_more_where_all_servers_are_well_by_then(
    make_learner: Callable[..., LocalLearner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Another thread has started the one again that died, or the trainer itself was stopped past a deadline."""
    sync = sync_of(make_learner(), "restart", tmp_path)
    sync.publish(0).wait()
    control = sync.engine.replicas[0]
    pause, failures = control.pause, [1]

    def failing(mode: str) -> None:
        if failures:
            failures.pop()
            raise EngineError("no answer within 1 s")
        pause(mode)

    monkeypatch.setattr(control, "pause", failing)
    assert sync.publish(1).version == 1
    failures += [1, 1]
    with pytest.raises(EngineError, match="no answer within 1 s"):
        sync.publish(2)
    assert not failures
    failures += [1, 1]  # and once more where the learner's ranks were started again meanwhile
    monkeypatch.setattr(sync.learner, "revive", lambda: 1)
    assert sync.publish(2).version == 2


def test_a_version_that_came_with_the_server_that_was_started_again_is_checked_once(
    make_learner: Callable[..., LocalLearner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # As `broadcast` restores: a second check would find what the first left in the prefix cache.
    sync = sync_of(make_learner(), "restart", tmp_path)
    sync.publish(0).wait()
    control = sync.engine.replicas[0]
    warm_up = sync.warm_up

    def died(version: int) -> None:
        monkeypatch.setattr(sync, "warm_up", warm_up)
        raise EngineError("the server does not answer")

    monkeypatch.setattr(sync, "warm_up", died)
    monkeypatch.setattr(sync.engine, "revive", lambda: sync.publish(1, now=True).version)
    assert sync.publish(1).version == control.held == 1


def test_a_swap_that_failed_in_silence_is_found_by_the_workers_version(
    make_learner: Callable[..., LocalLearner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sync = sync_of(make_learner(), "restart", tmp_path)
    sync.publish(0).wait()
    monkeypatch.setattr(sync.engine.replicas[0], "restart", lambda model: None)
    with pytest.raises(TrainingError, match="version 1 was published, but worker 0 of a recorded vLLM holds 0"):
        sync.publish(1)


def test_a_check_whose_learners_part_was_noted_asks_the_learner_nothing_more(
    make_learner: Callable[..., LocalLearner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    learner = make_learner()
    sync = sync_of(learner, "restart", tmp_path)
    sync.publish(0).wait()
    train(learner)
    sync.note_learner(1)
    monkeypatch.setattr(sync.check, "learner", None)
    assert sync.publish(1).wait()["self_check"] > 0
    with pytest.raises(AttributeError):  # nothing was noted of this one
        sync.publish(2)


def test_what_was_noted_of_one_version_is_not_taken_for_anothers(
    make_learner: Callable[..., LocalLearner], tmp_path: Path
):
    learner = make_learner()
    sync = sync_of(learner, "restart", tmp_path)
    sync.note_learner(0)
    sync.publish(0).wait()
    train(learner)
    sync.publish(1).wait()  # as the learner is now, so it passes
    sync.note_learner(2)
    train(learner)
    with pytest.raises(TrainingError, match="log-probs differ from the learner's"):
        sync.publish(2)


def test_who_waits_for_a_version_is_told_before_it_is_checked(
    make_learner: Callable[..., LocalLearner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sync = sync_of(make_learner(), "restart", tmp_path)
    told: list[Any] = []
    monkeypatch.setattr(sync, "held", told.append)
    monkeypatch.setattr(sync, "confirm", lambda version: told.append("confirmed"))
    monkeypatch.setattr(sync.check, "run", lambda version: told.append("checked"))
    sync.publish(0).wait()
    assert told == ["confirmed", 0, "checked"]


@pytest.mark.parametrize("kind", ["lora", "restart"])
def test_the_first_version_is_waited_for_and_later_ones_may_be_under_way_while_the_learner_computes(
    make_learner: Callable[..., LocalLearner], tmp_path: Path, kind: str
):
    learner = make_learner(lora)
    control = RecordedVllm(learner)
    control.max_lora_rank = 4
    sync = sync_of(learner, kind, tmp_path, control)
    assert not sync.may_overlap(0)
    sync.publish(0).wait()
    assert sync.may_overlap(1)


def test_a_token_that_is_not_sampled_as_it_is_scored_shows_a_prefix_cache_that_was_not_reset(
    make_learner: Callable[..., LocalLearner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sync = sync_of(make_learner(), "restart", tmp_path)
    control = sync.engine.replicas[0]
    token, logprob = control.sample_token([3, 4, 5])
    monkeypatch.setattr(control, "sample_token", lambda prompt_ids: (token, logprob - 0.1))
    with pytest.raises(TrainingError, match=r"has a log-prob .* from what it scores that token with .* was not reset"):
        sync.publish(0)


def test_a_folder_says_its_version(tmp_path: Path):
    assert version_in(tmp_path) == -1
    write_version(tmp_path, 7)
    assert version_in(tmp_path) == 7


def test_a_prefix_cache_that_was_not_reset_is_caught_whatever_the_weights_did(
    make_learner: Callable[..., LocalLearner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sync = sync_of(make_learner(), "restart", tmp_path)
    sync.publish(0).wait()
    monkeypatch.setattr(sync.engine.replicas[0], "reset_prefix_cache", lambda: None)
    with pytest.raises(TrainingError, match=r"at version 1 a recorded vLLM still has 3 tokens .* was not reset"):
        sync.publish(1)
