"""The DeepSpeed learner on real Ray actors, Gloo and ZeRO, against the local one on the same batches."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from learners.tiny_models import ARCHITECTURES, make_batch, make_config, make_tokenizer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from shoal.errors import TrainingError
from shoal.learners.local import LocalLearner
from shoal.learners.model import load_policy
from shoal.learners.step import NonFiniteError
from shoal.runtime import resolve_runtime
from shoal.types import Segment

pytest.importorskip("ray", reason="needs Ray")
pytest.importorskip("deepspeed", reason="needs DeepSpeed")
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]

from shoal.cluster.deepspeed_learner import DeepSpeedLearner  # noqa: E402
from shoal.cluster.ray_nodes import RayNodes  # noqa: E402

KEYS = {"optimizer__weight_decay": 0.1, "optimizer__max_grad_norm": 0.5, "learner__timeout": 120.0}
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
    folder = tmp_path_factory.mktemp("qwen3")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(ARCHITECTURES["qwen3"]())
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
        cfg = make_config(model_folder, **{**KEYS, **keys}, learner__num_devices=world, learner__zero_stage=stage)
        learner = DeepSpeedLearner(cfg, 10, tmp_path / "logs")
        try:
            yield learner
        finally:
            learner.close()

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
        (1, 1, {}),
        (1, 2, {}),
        (1, 3, {}),
        (2, 2, {"learner__offload_optimizer": True}),
        (2, 3, {"model__gradient_checkpointing": True, "learner__micro_batch_size": 2, **SEVERAL_STEPS}),
    ],
)
def test_ten_steps_give_the_local_learners_losses_norms_and_weights(
    opened: Any, local: Any, tmp_path: Path, world: int, stage: int, keys: dict[str, Any]
) -> None:
    plain = {key: value for key, value in keys.items() if key != "learner__offload_optimizer"}
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


def test_log_probs_come_in_the_order_of_the_segments(opened: Any, local: Any) -> None:
    segments = [
        Segment([2, 3 + n], [4, 5, 6][: n % 3 + 1], [0.0] * (n % 3 + 1), [True] * (n % 3 + 1)) for n in range(5)
    ]
    with opened(2, 3) as learner:
        found = learner.logprobs(segments, 0.7)
    for mine, theirs in zip(found, local().logprobs(segments, 0.7), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)


def test_a_rank_that_dies_is_named_with_its_log(opened: Any) -> None:
    with opened(2, 2) as learner:
        learner.train(make_batch(0))
        pids = learner._all("pid")
        os.kill(pids[1], signal.SIGKILL)
        with pytest.raises(TrainingError, match=r"the learner's rank 1 failed to train: .*learner_rank_1\.log"):
            learner.train(make_batch(1))
