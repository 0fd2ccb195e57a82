"""The DeepSpeed learner on real Ray actors, Gloo and ZeRO, against the local one on the same batches."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from time import sleep
from typing import Any

import pytest
import torch
from learners.tiny_models import ARCHITECTURES, make_batch, make_config, make_tokenizer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from shoal.errors import TrainingError
from shoal.learners.local import LocalLearner
from shoal.learners.lora import plain_weights
from shoal.learners.model import load_policy
from shoal.learners.step import NonFiniteError
from shoal.models.info import read_info
from shoal.runtime import resolve_runtime
from shoal.types import Segment
from shoal.wire.held import HeldWeights
from shoal.wire.stream import Meeting, bucket_size, listen, receive

pytest.importorskip("ray", reason="needs Ray")
pytest.importorskip("deepspeed", reason="needs DeepSpeed")
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]

from shoal.cluster.cluster import Cluster  # noqa: E402
from shoal.cluster.deepspeed_learner import DeepSpeedLearner  # noqa: E402
from shoal.cluster.ray_nodes import RayNodes  # noqa: E402

KEYS = {"optimizer__weight_decay": 0.1, "optimizer__max_grad_norm": 0.5, "learner__timeout": 300.0}
SEVERAL_STEPS = {"algorithm__num_epochs": 2, "algorithm__num_minibatches": 2, "optimizer__lr": 1e-3}
TIMES = ("train/seconds", "train/tokens_per_second", "train/forwarded_tokens_per_second")
LAYOUT = ("train/forwarded_tokens", "train/padding")  # two ranks pack other rows


@pytest.fixture(scope="module", autouse=True)
def nodes() -> Iterator[RayNodes]:
    """One cluster for all tests here; each learner finds it and leaves it."""
    found = RayNodes()
    yield found
    found.close()


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with tied embeddings."""
    return save_model("qwen3", tmp_path_factory.mktemp("qwen3"))


def save_model(name: str, folder: Path) -> Path:
    """A tiny model whose words are far from equally likely, and its tokenizer."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(ARCHITECTURES[name]())
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2) if parameter.ndim > 1 else None
    model.generation_config.eos_token_id = 1
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def opened(model_folder: Path, tmp_path: Path) -> Callable[..., Any]:
    """A learner of `world` ranks, closed after the block."""

    @contextmanager
    def make(world: int, stage: int, **keys: Any) -> Iterator[DeepSpeedLearner]:
        ranks = {"learner__kind": "deepspeed", "learner__num_devices": world, "learner__zero_stage": stage}
        cfg = make_config(model_folder, **{**KEYS, **keys, **ranks})
        with closing(Cluster(cfg)) as cluster:
            learner = DeepSpeedLearner(cfg, read_info(cfg.model), cluster, 10, tmp_path / "logs")
            with closing(learner):
                yield learner

    return make


@pytest.fixture
def local(model_folder: Path) -> Callable[..., LocalLearner]:
    def make(**keys: Any) -> LocalLearner:
        cfg = make_config(model_folder, **{**KEYS, **keys})
        runtime = resolve_runtime(cfg.runtime, cfg.model)
        torch.manual_seed(cfg.run.seed)
        return LocalLearner(load_policy(cfg.model, runtime), cfg, runtime, 10)

    return make


def assert_same(mine: dict[str, float], theirs: dict[str, float], world: int) -> None:
    left_out = {*TIMES, *(LAYOUT if world > 1 else ())}
    assert mine.keys() == theirs.keys()
    for name in mine.keys() - left_out:
        assert mine[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-5), name


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


@pytest.mark.parametrize(
    ("world", "stage", "keys"),
    [
        (1, 0, {}),
        (2, 2, {"learner__offload_optimizer": True}),
        (2, 3, {"learner__offload_optimizer": True, "learner__offload_parameters": True}),
        (2, 3, {"model__gradient_checkpointing": True, "learner__micro_batch_size": 2, **SEVERAL_STEPS}),
    ],
)
def test_ten_steps_give_the_local_learners_losses_norms_and_weights(
    opened: Any, local: Any, tmp_path: Path, world: int, stage: int, keys: dict[str, Any]
) -> None:
    plain = {key: value for key, value in keys.items() if "offload" not in key}
    right = local(**plain)
    with opened(world, stage, **keys) as learner:
        for step in range(10):
            assert_same(learner.train(make_batch(step)), right.train(make_batch(step)), world)
        assert learner.version == right.version == 10
        assert learner.weight_specs() == right.weight_specs()
        learner.export(tmp_path / "theirs")
    right.export(tmp_path / "mine")
    mine, theirs = weights_of(tmp_path / "mine"), weights_of(tmp_path / "theirs")
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_in_float16_the_loss_is_scaled_and_the_steps_are_the_local_learners_but_for_rounding(
    opened: Any, local: Any
) -> None:
    right = local(model__dtype="float16")
    with opened(1, 2, model__dtype="float16") as learner:
        overflown = 0.0
        for step in range(4):
            mine, theirs = learner.train(make_batch(step)), right.train(make_batch(step))
            for name in ("loss/total", "train/grad_norm", "sampler/kl_k3", "train/skipped_steps"):
                assert mine[name] == pytest.approx(theirs[name], rel=1e-2, abs=1e-3), name
            overflown += mine["train/skipped_steps"]
        assert overflown > 0


def test_of_gpt2_only_the_keys_biases_differ_whose_gradient_is_nothing_but_rounding(
    opened: Any, local: Any, tmp_path: Path
) -> None:
    """A bias of all keys moves no attention, so its gradient is 0 but for rounding, of which Adam makes whole steps."""
    folder = save_model("gpt2", tmp_path / "gpt2")
    keys = {"model__name": str(folder), "optimizer__weight_decay": 0.0}
    right = local(**keys)
    with opened(1, 2, **keys) as learner:
        for step in range(3):
            assert_same(learner.train(make_batch(step)), right.train(make_batch(step)), 1)
        learner.export(tmp_path / "theirs")
    right.export(tmp_path / "mine")
    mine, theirs = weights_of(tmp_path / "mine"), weights_of(tmp_path / "theirs")
    for name, value in mine.items():
        found, right_value = theirs[name].clone(), value.clone()
        if name.endswith("c_attn.bias"):
            found[32:64] = right_value[32:64] = 0
        torch.testing.assert_close(found, right_value, rtol=1e-4, atol=1e-5, msg=name)


def test_shards_leave_rank_0_whole_with_their_adapters_merged(opened: Any, local: Any) -> None:
    keys = {"model__train": "lora", "model__lora__alpha": 64}
    right = local(**keys)
    with opened(2, 3, **keys) as learner:
        learner.train(make_batch(0))
        right.train(make_batch(0))
        store = listen("127.0.0.1", 60.0)
        meeting = Meeting("127.0.0.1", store.port, "merged", 2, 60.0)
        with ThreadPoolExecutor(1) as sender:
            joined = sender.submit(learner.join, meeting)
            group = meeting.join(1, torch.device("cpu"))
            joined.result(60)
            specs = learner.weight_specs()
            sent = sender.submit(learner.send_weights, meeting, 0)
            received = receive(group, specs, bucket_size(specs), torch.device("cpu"))
            found = {name: value.clone() for name, value in received}
            sent.result(60)
    merged = {name: value.clone() for name, value in right.named_weights()}
    base = dict(plain_weights(right.policy.causal_lm))
    assert found.keys() == merged.keys()
    assert [name for name, value in merged.items() if not torch.equal(value, base[name])]
    for name, value in merged.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_what_a_step_changes_leaves_rank_0_of_shards_as_all_weights_do(opened: Any) -> None:
    keys = {"weight_sync__delta": True, "model__dtype": "bfloat16", "optimizer__lr": 1e-5}
    cpu = torch.device("cpu")
    with opened(2, 3, **keys) as learner, ThreadPoolExecutor(1) as sender:
        store = listen("127.0.0.1", 60.0)
        meeting = Meeting("127.0.0.1", store.port, "delta", 2, 60.0)
        joined = sender.submit(learner.join, meeting)
        group = meeting.join(1, cpu)
        joined.result(60)
        specs = learner.weight_specs()
        held, bucket = HeldWeights(specs, {}, 1), bucket_size(specs)
        sent = sender.submit(learner.send_weights, meeting, 0)
        assert len(list(held.noting(receive(group, specs, bucket, cpu), 0))) == len(specs)
        sent.result(60)
        learner.train(make_batch(0))
        size = learner.compare_weights(1)
        assert (size.before, size.after) == (0, 1) and 0 < size.changed_share < 0.4
        sent = sender.submit(learner.send_delta, meeting)
        assert not held.take(group, 1, cpu).wrong
        sent.result(60)
        sent = sender.submit(learner.send_weights, meeting, 1)
        for name, whole in receive(group, specs, bucket, cpu):
            assert torch.equal(held.copies[name], whole)
        sent.result(60)


def test_an_adapter_over_shards_trains_and_is_written_as_in_one_process(
    opened: Any, local: Any, tmp_path: Path
) -> None:
    keys = {"model__train": "lora"}
    right = local(**keys)
    with opened(2, 3, **keys) as learner:
        for step in range(3):
            assert_same(learner.train(make_batch(step)), right.train(make_batch(step)), 2)
        learner.export(tmp_path / "theirs")
    right.export(tmp_path / "mine")
    mine, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("mine", "theirs"))
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(("before", "after"), [((2, 3), (1, 1)), ((1, 2), (2, 3))])
def test_a_checkpoint_is_gone_on_from_with_other_ranks_and_another_stage(
    opened: Any, local: Any, tmp_path: Path, before: tuple[int, int], after: tuple[int, int]
) -> None:
    right = local()
    with opened(*before) as learner:
        for step in range(3):
            right.train(make_batch(step))
            learner.train(make_batch(step))
        learner.save(tmp_path)
    assert len(list(tmp_path.glob("learner-*.pt"))) == before[0]
    with opened(*after) as learner:
        learner.load(tmp_path)
        assert learner.version == 3
        for step in range(3, 6):
            assert_same(learner.train(make_batch(step)), right.train(make_batch(step)), 2)


def test_a_loss_that_is_not_finite_names_its_completions_on_both_ranks_and_leaves_the_weights(
    opened: Any, local: Any
) -> None:
    right = local()
    with opened(2, 3) as learner:
        broken = make_batch(1)
        for place in (0, -1):  # groups of different ranks
            broken.sequences[place].advantages[:] = float("nan")
        guilty = sorted({broken.sequences[0].completion, broken.sequences[-1].completion})
        with pytest.raises(NonFiniteError, match="the weights are as before it") as raised:
            learner.train(broken)
        assert raised.value.completions == guilty
        assert_same(learner.train(make_batch(2)), right.train(make_batch(2)), 2)


def test_a_batch_without_any_advantage_is_a_step_of_gradient_0(opened: Any, local: Any) -> None:
    right = local()
    with opened(2, 3) as learner:
        for step, advantage in enumerate((1.0, 0.0, 1.0)):
            batch = make_batch(step)
            for one in batch.sequences:
                one.advantages *= advantage
            mine = learner.train(batch)
            assert_same(mine, right.train(batch), 2)
            assert (mine["train/grad_norm"] > 0) == bool(advantage)


def test_log_probs_come_in_the_order_of_the_segments(opened: Any, local: Any) -> None:
    segments = [
        Segment([2, 3 + n], [4, 5, 6][: n % 3 + 1], [0.0] * (n % 3 + 1), [True] * (n % 3 + 1)) for n in range(5)
    ]
    with opened(2, 3) as learner:
        found = learner.logprobs(segments, 0.7)
    for mine, theirs in zip(found, local().logprobs(segments, 0.7), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)


def test_a_rank_that_dies_and_may_not_be_started_again_is_named_with_its_log(opened: Any) -> None:
    with opened(2, 2, learner__restarts=0) as learner:
        learner.train(make_batch(0))
        pids = learner._all("pid")
        os.kill(pids[1], signal.SIGKILL)
        with pytest.raises(TrainingError, match=r"the learner's rank 1 failed to train: .*learner_rank_1\.log"):
            learner.train(make_batch(1))


def test_ranks_are_started_again_from_the_checkpoint_and_train_again_what_came_since(
    opened: Any, local: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Killed before the first checkpoint, and after one; the second time by a call that trains nothing."""
    right = local()
    with opened(2, 2, learner__restarts=2) as learner:
        for step in range(6):
            if step in (1, 5):
                os.kill(learner._all("pid")[step % 2], signal.SIGKILL)
            if step == 5:
                segment = Segment([2, 3], [4, 5], [0.0] * 2, [True] * 2)
                assert learner.logprobs([segment])[0] == pytest.approx(right.logprobs([segment])[0], abs=1e-4)
            assert_same(learner.train(make_batch(step)), right.train(make_batch(step)), 2)
            if step == 2:
                (tmp_path / "writing").mkdir()
                learner.save(tmp_path / "writing")
                (tmp_path / "writing").rename(tmp_path / "step_3")
                learner.saved(tmp_path / "step_3")
        assert learner.version == right.version == 6
        assert [state for _, _, state in learner.places()] == ["version 6, idle"] * 2
        assert "started again from the start of the run and train 1 batch again" in caplog.text
        assert "started again from step_3 and train 2 batches again" in caplog.text
        assert "0 learner.restarts are left" in caplog.text
        os.kill(learner._all("pid")[0], signal.SIGKILL)
        with pytest.raises(TrainingError, match="the learner's rank 0 failed to train"):
            learner.train(make_batch(6))


def test_a_rank_that_hangs_counts_as_lost(opened: Any, local: Any) -> None:
    right = local()
    with opened(1, 2, learner__timeout=60.0) as learner:
        assert_same(learner.train(make_batch(0)), right.train(make_batch(0)), 1)
        learner.cfg.learner.timeout = 3.0
        os.kill(learner._all("pid")[0], signal.SIGSTOP)
        with ThreadPoolExecutor(1) as trainer:
            trained = trainer.submit(learner.train, make_batch(1))
            while not learner.lost:
                assert not trained.done()
                sleep(0.01)
            learner.cfg.learner.timeout = 60.0
            assert_same(trained.result(120), right.train(make_batch(1)), 1)


def test_a_peer_that_is_lost_in_the_middle_of_a_broadcast_leaves_all_ranks_able_to_go_on(
    opened: Any, local: Any
) -> None:
    """Over shards rank 0 gathers from the others, who would wait for the gathers that it leaves out."""
    right = local()
    with opened(2, 3, learner__timeout=60.0, learner__restarts=0) as learner:
        store = listen("127.0.0.1", 20.0)
        meeting = Meeting("127.0.0.1", store.port, "broken", 2, 20.0)
        with ThreadPoolExecutor(1) as sender:
            joined = sender.submit(learner.join, meeting)
            group = meeting.join(1, torch.device("cpu"))
            joined.result(60)
            del group  # before the first weight: so few bytes may all be on their way when it leaves later
            sent = sender.submit(learner.send_weights, meeting, 0)
            with pytest.raises(RuntimeError, match="the learner's rank 0"):
                sent.result(60)
        assert_same(learner.train(make_batch(0)), right.train(make_batch(0)), 2)


@pytest.mark.parametrize(("world", "stage", "keys"), [(2, 3, {}), (1, 2, {}), (2, 3, {"model__train": "lora"})])
def test_the_reference_of_the_ranks_is_the_policy_of_the_start_whatever_is_trained(
    opened: Any, local: Any, world: int, stage: int, keys: dict[str, Any]
) -> None:
    segments = [Segment([2, 3 + n], [4, 5, 6][: n + 1], [0.0] * (n + 1), [True] * (n + 1)) for n in range(3)]
    before = local(**keys).logprobs(segments)
    with opened(world, stage, algorithm__kl_coef=0.1, optimizer__lr=1e-2, **keys) as learner:
        batch = make_batch(0)
        for one in batch.sequences:
            one.ref_logprobs = one.sampler_logprobs
        learner.train(batch)
        trained, found = learner.logprobs(segments), learner.reference_logprobs(segments)
    for row, start, now in zip(found, before, trained, strict=True):
        assert row == pytest.approx(start, abs=1e-5)
        assert row != pytest.approx(now, abs=1e-4)
