"""The local learner: what it trains, what it refuses, and that it resumes exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from tiny_models import gradient, make_batch, relative
from transformers import AutoModelForCausalLM, AutoTokenizer

from shoal.errors import ConfigError
from shoal.learners.local import LocalLearner
from shoal.learners.step import NonFiniteError, minibatches
from shoal.types import Segment, TrainSequence

Make = Callable[..., LocalLearner]
SEVERAL = {"algorithm__num_epochs": 2, "algorithm__num_minibatches": 3}


def weights(learner: LocalLearner) -> torch.Tensor:
    trained = [one for one in learner.policy.model.parameters() if one.requires_grad]
    return torch.cat([one.detach().float().flatten() for one in trained])


def as_segment(one: TrainSequence) -> Segment:
    return Segment(one.ids[: one.context].tolist(), one.ids[one.context :].tolist(), [], one.mask.tolist())


@pytest.mark.parametrize("train", ["full", "lora"])
@pytest.mark.parametrize("name", ["qwen3", "llama", "gemma3"])
def test_three_steps_packed_and_padded_have_equal_gradients(make_learner: Make, name: str, train: str):
    learners = []
    for packing in ("on", "off"):
        torch.manual_seed(0)  # the adapter starts at random
        learners.append(make_learner(name, model__train=train, learner__packing=packing))
    for seed in range(3):
        packed, padded = (gradient(learner, make_batch(seed=seed)) for learner in learners)
        assert padded.norm() > 0
        # The two runs' weights drift apart by rounding, which AdamW's first steps magnify.
        assert relative(packed, padded) < (1e-5 if seed == 0 else 1e-2)
        assert [learner.version for learner in learners] == [seed + 1] * 2


def test_a_step_raises_the_probability_of_what_was_rewarded(make_learner: Make):
    learner = make_learner(optimizer__lr=1e-2)
    batch = make_batch(segments=False)

    def score() -> float:
        """Log-probs of the trained tokens, each times its advantage."""
        rows = learner.logprobs([as_segment(one) for one in batch.sequences])
        return sum(
            float((np.array(row) * one.advantages)[one.mask].sum())
            for row, one in zip(rows, batch.sequences, strict=True)
        )

    before = score()
    for _ in range(3):
        learner.train(batch)
    assert score() > before + 1


def test_epochs_and_minibatches_count_optimizer_steps_and_use_the_logprobs_of_the_start(make_learner: Make):
    metrics = make_learner(**SEVERAL).train(make_batch())
    assert metrics["train/optimizer_steps"] == 6
    assert metrics["policy/ratio_max"] > 1.001, "later steps should see a ratio away from 1"
    assert make_learner().train(make_batch())["policy/ratio_max"] == 1.0


def test_each_minibatch_has_its_own_normaliser(make_learner: Make):
    # Three minibatches of the same completions, one after another, without learning: each has the gradient of one.
    batch = make_batch(segments=False)
    tripled = replace(
        batch,
        sequences=[
            replace(one, completion=one.completion + batch.completions * copy, group=one.group + 4 * copy)
            for copy in range(3)
            for one in batch.sequences
        ],
        completions=3 * batch.completions,
    )
    once = make_learner(optimizer__lr=0.0).train(batch)
    thrice = make_learner(optimizer__lr=0.0, algorithm__num_minibatches=3).train(tripled)
    assert thrice["train/optimizer_steps"] == 3
    assert thrice["train/grad_norm"] == pytest.approx(once["train/grad_norm"], rel=1e-5)
    assert thrice["loss/total"] == pytest.approx(once["loss/total"], rel=1e-5)


def test_old_logprobs_of_the_sampler_give_the_ratio_to_the_sampler(make_learner: Make):
    batch = make_batch(groups=1, segments=False)
    learner = make_learner(algorithm__old_logprobs="sampler")
    rows = learner.logprobs([as_segment(one) for one in batch.sequences], batch.temperature)
    gaps = [(np.array(row) - one.sampler_logprobs)[one.mask] for row, one in zip(rows, batch.sequences, strict=True)]
    expected = np.exp(np.concatenate(gaps)).max()
    assert learner.train(batch)["policy/ratio_max"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "kind",
    [
        {"model__train": "full"},
        {"model__train": "lora"},
        {"model__dtype": "bfloat16", "optimizer__lr": 1e-3},
        {"runtime__mixed_precision": "fp16"},
    ],
    ids=["full", "lora", "bf16 weights", "mixed fp16"],
)
def test_a_resumed_learner_goes_on_bit_for_bit(make_learner: Make, tmp_path: Path, kind: dict[str, Any]):
    keys = {**SEVERAL, **kind, "optimizer__scheduler": "cosine", "optimizer__warmup_steps": 3}
    first = make_learner(**keys)
    for seed in range(2):
        first.train(make_batch(seed=seed))
    first.save(tmp_path)
    expected = first.train(make_batch(seed=2))
    second = make_learner(**keys)
    second.load(tmp_path)
    found = second.train(make_batch(seed=2))
    timed = {"train/seconds", "train/tokens_per_second", "train/forwarded_tokens_per_second"}
    assert {name: found[name] for name in found.keys() - timed} == {
        name: expected[name] for name in expected.keys() - timed
    }
    assert torch.equal(weights(first), weights(second))
    assert second.version == first.version == 3


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_cast_weights_are_cast_again_after_an_optimizer_step(make_learner: Make, tmp_path: Path, precision: str):
    # The fused optimizer does not raise the weights' version counters by itself, by which old casts are known.
    learner = make_learner(runtime__mixed_precision=precision, optimizer__lr=0.05)
    segments = [Segment([3, 4, 5], [6, 7, 8], [0.0] * 3, [True] * 3)]
    before = learner.logprobs(segments)
    learner.train(make_batch())
    other = make_learner(runtime__mixed_precision=precision)
    learner.save(tmp_path)
    other.load(tmp_path)
    assert learner.logprobs(segments) == other.logprobs(segments) != before


def test_a_learner_goes_back_to_what_it_saved(make_learner: Make, tmp_path: Path):
    learner = make_learner()
    learner.train(make_batch())
    learner.save(tmp_path)
    before = weights(learner)
    learner.train(make_batch(seed=1))
    assert not torch.equal(weights(learner), before)
    learner.load(tmp_path)
    assert torch.equal(weights(learner), before) and learner.version == 1


def test_what_another_model_saved_is_refused(make_learner: Make, tmp_path: Path):
    make_learner(model__train="lora").save(tmp_path)
    with pytest.raises(ConfigError, match="not those of this model"):
        make_learner().load(tmp_path)


def test_the_watcher_is_told_before_and_after_each_write_and_after_one_that_fails(
    make_learner: Make, monkeypatch: pytest.MonkeyPatch
):
    learner = make_learner(**SEVERAL)
    start = weights(learner)
    told: list[tuple[str, bool]] = []

    class Told:
        def before_write(self) -> None:
            told.append(("before", torch.equal(weights(learner), start)))

        def after_write(self) -> None:
            told.append(("after", torch.equal(weights(learner), start)))

    steps = int(learner.train(make_batch(), Told())["train/optimizer_steps"])
    assert steps > 1 and [name for name, _ in told] == ["before", "after"] * steps
    assert told[:2] == [("before", True), ("after", False)]

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(learner.optimizer, "_write_back", fails)
    told.clear()
    with pytest.raises(RuntimeError, match="the device is gone"):
        learner.train(make_batch(), Told())
    assert [name for name, _ in told] == ["before", "after"]


@pytest.mark.parametrize(
    ("keys", "tolerance"),
    [
        ({"runtime__mixed_precision": "bf16"}, 0.05),
        ({"runtime__mixed_precision": "fp16"}, 0.01),
        ({"runtime__mixed_precision": "auto", "model__dtype": "bfloat16"}, 0.1),
        ({"runtime__mixed_precision": "auto", "model__dtype": "float16"}, 0.02),
    ],
    ids=["mixed bf16", "mixed fp16", "bf16 weights", "fp16 weights"],
)
def test_sixteen_bits_train_and_stay_near_float32(make_learner: Make, keys: dict[str, Any], tolerance: float):
    batch = make_batch()
    learner = make_learner(**keys)
    before = weights(learner)
    found, expected = gradient(learner, batch), gradient(make_learner(), batch)
    assert found.dtype == torch.float32
    assert relative(found, expected) < tolerance
    metrics = learner.train(make_batch(seed=1))
    assert metrics["train/skipped_steps"] == 0
    assert np.isfinite(list(metrics.values())).all()
    assert not torch.equal(weights(learner), before)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_gradients_of_sixteen_bit_weights_add_up_over_micro_batches(make_learner: Make, dtype: str):
    batch = make_batch()
    whole = gradient(make_learner(model__dtype=dtype), batch)
    divided = gradient(make_learner(model__dtype=dtype, learner__micro_batch_size=1), batch)
    assert relative(divided, whole) < 0.02


def test_sixteen_bit_weights_collect_updates_that_are_smaller_than_their_rounding(make_learner: Make):
    # At 0.2 bfloat16 numbers are 2^-10 apart; steps of 1e-4 vanish unless a float32 master adds them up.
    learner = make_learner(model__dtype="bfloat16", optimizer__lr=1e-4)
    before = weights(learner)
    masters = torch.cat([one.detach().flatten() for one in learner.optimizer.masters])
    for _ in range(12):
        learner.train(make_batch())
    moved = torch.cat([one.detach().flatten() for one in learner.optimizer.masters]) - masters
    assert 0.2e-3 < moved.abs().max() < 1.3e-3
    assert (weights(learner) != before).any()


def test_a_batch_that_overflows_under_loss_scaling_is_done_again_at_a_lower_scale_and_said(
    make_learner: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    keys = {"runtime__mixed_precision": "fp16", "optimizer__scheduler": "linear", "optimizer__warmup_steps": 0}
    plain, learner = make_learner(**keys), make_learner(**keys)
    learner.optimizer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    expected, metrics = plain.train(make_batch()), learner.train(make_batch())
    skipped = int(metrics["train/skipped_steps"])
    assert skipped >= 6
    assert learner.optimizer.scaler.get_scale() == 2.0 ** (40 - skipped)
    assert caplog.text.count("the batch is done again") == skipped
    # The batch is trained on once, measured once, and the schedule has moved by one step.
    assert metrics["train/tokens_measured"] == expected["train/tokens_measured"]
    assert metrics["train/grad_norm"] == pytest.approx(expected["train/grad_norm"], rel=1e-2)
    assert learner.optimizer.lr == plain.optimizer.lr < 1e-2
    torch.testing.assert_close(weights(learner), weights(plain), atol=3e-2, rtol=0)
    assert not torch.equal(weights(learner), weights(make_learner(**keys)))
    other = make_learner(**keys)
    learner.save(tmp_path)
    other.load(tmp_path)
    assert other.optimizer.scaler.get_scale() == learner.optimizer.scaler.get_scale()
    assert other.optimizer.skipped == skipped


def test_an_infinite_advantage_is_no_overflow_of_the_scale_and_names_its_completion(make_learner: Make):
    learner = make_learner(runtime__mixed_precision="fp16")
    batch = make_batch(segments=False)
    batch.sequences[-1].advantages[:] = np.inf
    before = weights(learner)
    with pytest.raises(NonFiniteError, match=rf"completions \[{batch.sequences[-1].completion}\]"):
        learner.train(batch)
    assert torch.equal(weights(learner), before)


def test_minibatches_are_the_batchs_own_order_first_and_shuffled_by_the_seed_in_later_epochs():
    batch = make_batch(groups=4)

    def order(shuffle: str | None) -> list[list[int]]:
        parts = minibatches(batch, 3, "token", False, shuffle)
        return [list(dict.fromkeys(one.completion for one in part.sequences)) for part in parts]

    assert [number for part in order(None) for number in part] == list(range(batch.completions))
    assert order("0/3/1") == order("0/3/1") != order("0/3/2") != order(None)
    assert sorted(number for part in order("0/3/1") for number in part) == list(range(batch.completions))


def test_epochs_over_several_minibatches_differ_by_the_runs_seed_and_repeat_with_it(make_learner: Make):
    keys = {"algorithm__num_minibatches": 3, "algorithm__num_epochs": 2}
    one, again, other = make_learner(**keys), make_learner(**keys), make_learner(**keys, run__seed=1)
    for learner in (one, again, other):
        learner.train(make_batch(groups=4))
    assert torch.equal(weights(one), weights(again))
    assert not torch.equal(weights(one), weights(other))


def test_entropy_and_mismatch_are_those_of_all_completions_although_some_are_skipped(make_learner: Make):
    # Group 1 has no advantage. Its completions are all alike, so that the one that is measured stands for them exactly.
    batch = make_batch(segments=False)
    skipped = [one for one in batch.sequences if not one.has_signal]
    assert len(skipped) == 3
    alike = [replace(skipped[0], completion=one.completion) for one in skipped]
    batch.sequences = [one for one in batch.sequences if one.has_signal] + alike
    batch.trained_tokens = sum(one.trained_tokens for one in batch.sequences)
    measured = make_learner().train(batch)
    whole = make_learner(learner__skip_zero_advantage=False).train(batch)
    assert measured["train/completions_measured"] == whole["train/completions_measured"] - 2
    for name, value in whole.items():
        if name.startswith(("policy/", "sampler/", "loss/")):
            assert measured[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name


def test_an_infinite_advantage_stops_the_run_names_its_completion_and_leaves_the_weights(make_learner: Make):
    learner = make_learner()
    batch = make_batch()
    guilty = batch.sequences[4]
    guilty.advantages[:] = np.inf
    before = weights(learner)
    with pytest.raises(NonFiniteError, match=rf"completions \[{guilty.completion}\]") as caught:
        learner.train(batch)
    assert caught.value.completions == [guilty.completion]
    assert torch.equal(weights(learner), before)
    assert learner.version == 0


def test_a_gradient_that_is_not_finite_stops_the_run_although_the_loss_is(make_learner: Make):
    learner = make_learner()
    batch = make_batch(segments=False)
    batch.sequences[-1].advantages[:] = 3e38  # its loss is about 1e37, its squared gradients overflow float32
    before = weights(learner)
    with pytest.raises(NonFiniteError, match="gradient of optimizer step 1") as caught:
        learner.train(batch)
    assert caught.value.completions == [batch.sequences[-1].completion]
    assert torch.equal(weights(learner), before)


def test_an_empty_batch_takes_no_step_but_counts_a_version(make_learner: Make):
    learner = make_learner()
    before = weights(learner)
    metrics = learner.train(replace(make_batch(), sequences=[], completions=0, trained_tokens=0))
    assert metrics["train/optimizer_steps"] == 0
    assert learner.version == 1
    assert torch.equal(weights(learner), before)


def test_a_batch_of_zero_advantages_moves_the_weights_by_momentum_as_it_would_unskipped(make_learner: Make):
    batch = make_batch()
    silent = replace(batch, sequences=[replace(one, advantages=one.advantages * 0) for one in batch.sequences])
    found = []
    for skip in (True, False):
        learner = make_learner(learner__skip_zero_advantage=skip)
        learner.train(batch)
        middle = weights(learner)
        learner.train(silent)
        assert not torch.equal(weights(learner), middle)
        found.append(weights(learner))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("scheduler", "shape"),
    [
        # Two warm-up steps to 1e-2, none of them at 0, then eight steps of the schedule.
        ("constant", [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ("cosine", [0.5, 1, *((1 + np.cos(np.pi * np.arange(8) / 8)) / 2)]),
    ],
)
@pytest.mark.parametrize("warmup", [{"optimizer__warmup_steps": 2}, {"optimizer__warmup_ratio": 0.2}])
def test_the_schedule_counts_optimizer_steps(
    make_learner: Make, scheduler: str, shape: list[float], warmup: dict[str, Any]
):
    learner = make_learner(optimizer__scheduler=scheduler, algorithm__num_minibatches=2, steps=5, **warmup)
    batch = make_batch(groups=2)
    rates = []
    for _ in range(5):
        rates.append(learner.optimizer.lr)
        metrics = learner.train(batch)
        rates.append(metrics["train/lr"])
    np.testing.assert_allclose(rates, 1e-2 * np.array(shape), atol=1e-12)


def test_a_run_that_becomes_longer_goes_on_under_the_longer_schedule(make_learner: Make, tmp_path: Path):
    keys = {"optimizer__scheduler": "cosine", "optimizer__warmup_steps": 0}
    first = make_learner(**keys, steps=4)
    for _ in range(4):
        first.train(make_batch(groups=1))
    assert first.optimizer.lr == pytest.approx(0, abs=1e-12)
    longer = make_learner(**keys, steps=8)
    first.save(tmp_path)
    longer.load(tmp_path)
    # Half of the way down the cosine from 1e-2.
    assert longer.optimizer.lr == pytest.approx(5e-3)
    assert longer.train(make_batch(groups=1))["train/lr"] == pytest.approx(5e-3)
    assert longer.optimizer.optimizer.param_groups[0]["lr"] < 5e-3


@pytest.mark.parametrize("name", ["cosine_with_restarts", "polynomial", "inverse_sqrt"])
def test_every_other_schedule_runs(make_learner: Make, name: str):
    learner = make_learner(optimizer__scheduler=name, optimizer__warmup_steps=2, steps=4)
    rates = [learner.train(make_batch())["train/lr"] for _ in range(4)]
    assert rates[:3] == pytest.approx([5e-3, 1e-2, 1e-2])
    assert rates[3] < 1e-2


def test_clipping_bounds_the_update_and_zero_turns_it_off(make_learner: Make):
    seen = {}
    for limit in (0.0, 1e-3):
        learner = make_learner(optimizer__max_grad_norm=limit)
        norms: list[float] = []

        def listen(optimizer: Any, *_: Any, norms: list[float] = norms) -> None:
            gradients = [one.grad.flatten() for group in optimizer.param_groups for one in group["params"]]
            norms.append(float(torch.cat(gradients).norm()))

        learner.optimizer.optimizer.register_step_pre_hook(listen)
        metrics = learner.train(make_batch())
        seen[limit] = (norms[0], metrics["train/grad_norm"])
    assert seen[0.0][0] == pytest.approx(seen[0.0][1], rel=1e-5)
    assert seen[1e-3][0] == pytest.approx(1e-3, rel=1e-3)
    assert seen[1e-3][1] == pytest.approx(seen[0.0][1], rel=1e-5), "the metric is the norm before clipping"


def test_weight_decay_spares_vectors(make_learner: Make):
    learner = make_learner(optimizer__weight_decay=0.5)
    groups = learner.optimizer.optimizer.param_groups
    assert [(group["weight_decay"], {one.ndim for one in group["params"]}) for group in groups] == [
        (0.5, {2}),
        (0.0, {1}),
    ]


def test_the_eight_bit_optimizer_is_refused_without_cuda(make_learner: Make):
    with pytest.raises(ConfigError, match="adamw_8bit needs CUDA"):
        make_learner(optimizer__name="adamw_8bit")


@pytest.mark.parametrize("train", ["full", "lora"])
def test_the_saved_model_loads_with_from_pretrained(make_learner: Make, model_folder: Any, tmp_path: Path, train: str):
    learner = make_learner(model__train=train)
    learner.train(make_batch())
    learner.export(tmp_path)
    if train == "lora":
        assert (tmp_path / "adapter_model.safetensors").exists()
        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_folder("qwen3")), tmp_path)
    else:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(2, 12)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, learner.policy.model(ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token_id == 1


def test_adapter_dropout_is_off_where_logprobs_are_compared_and_on_in_training(make_learner: Make, tmp_path: Path):
    learner = make_learner(model__train="lora", model__lora__dropout=0.5, optimizer__lr=0.1)
    learner.train(make_batch())  # B = 0 at the start, so dropout before it would not show
    segments = [Segment([3, 4, 5], [6, 7, 8], [0.0] * 3, [True] * 3)]
    assert learner.logprobs(segments) == learner.logprobs(segments)
    learner.save(tmp_path)
    first = gradient(learner, make_batch())
    learner.load(tmp_path)
    assert relative(gradient(learner, make_batch()), first) > 0.01


def test_metrics_tell_tokens_and_padding(make_learner: Make):
    batch = make_batch(groups=1, size=2, segments=False)
    metrics = make_learner(learner__packing="off").train(batch)
    lengths = [one.context + int(np.flatnonzero(one.mask)[-1]) for one in batch.sequences]
    assert metrics["train/forwarded_tokens"] == 2 * max(lengths)
    assert metrics["train/padding"] == pytest.approx(1 - sum(lengths) / (2 * max(lengths)))
    assert metrics["train/tokens"] == batch.trained_tokens == metrics["train/tokens_measured"]
