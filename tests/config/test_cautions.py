"""Combinations that are said at the start."""

from __future__ import annotations

import pytest

from shoal.config import load_config
from shoal.config.cautions import cautions

DELTA = ["engine.processes=1", "weight_sync=broadcast", "weight_sync.delta=true"]
KL = ["algorithm.kl_coef=0.1", "algorithm.kl_in=reward"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], []),
        (["model.lora.dropout=0.05"], []),
        (["model.train=lora"], []),
        (["model.train=lora", "model.lora.dropout=0.05"], ["model.lora.dropout=0.05"]),
        (KL, ["algorithm.kl_in=reward"]),
        ([*KL, "algorithm.advantage=centered"], []),
        (["algorithm.kl_coef=0.1"], []),
        ([*DELTA, "runtime.target=cpu"], ["weight_sync.delta=true"]),
        ([*DELTA, "runtime.target=cpu", "model.dtype=bfloat16"], []),
        ([*DELTA, "model.dtype=float32"], ["weight_sync.delta=true"]),
        (["optimizer.lr=0"], ["optimizer.lr=0"]),
        (["run.steps=3", "optimizer.warmup_steps=4"], ["optimizer.warmup_steps=4"]),
        (["run.steps=2", "algorithm.num_epochs=2", "optimizer.warmup_steps=4"], []),
    ],
)
def test_a_combination_is_said_where_it_seldom_does_what_is_meant(overrides: list[str], said: list[str]):
    lines = list(cautions(load_config("story", overrides)))
    assert [line.split(":")[0].split(" with ")[0] for line in lines] == said


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["algorithm=dr_grpo", "algorithm.std=sample"], "algorithm.std"),
        (["algorithm=dr_grpo", "algorithm.eps=1e-4"], "algorithm.eps"),
        (["algorithm=cispo", "algorithm.clip_low=0.1"], "algorithm.clip_low"),
        (["algorithm.correction_high=3"], "algorithm.correction_high"),
        (["algorithm.refill_rounds=2"], "algorithm.refill_rounds"),
        (["weight_sync.full_every=2"], "weight_sync.full_every"),
        (["algorithm.kl_estimator=k2"], "algorithm.kl_estimator"),
        (["reference.name=other"], "reference.name"),
        (["reference.polyak_every=2"], "reference.polyak_every"),
        (["data.split=validation"], "data.split"),
    ],
)
def test_a_key_that_nothing_reads_beside_the_others_is_said_to_have_no_effect(overrides: list[str], key: str):
    lines = list(cautions(load_config("story", overrides)))
    assert [line.partition(" has no effect: ")[0] for line in lines] == [key]


@pytest.mark.parametrize(
    "overrides",
    [
        ["algorithm.std=sample", "algorithm.eps=1e-4"],
        ["algorithm.correction=token_mask", "algorithm.correction_high=3"],
        ["algorithm=dapo", "algorithm.refill_rounds=2"],
        ["algorithm.kl_coef=0.1", "algorithm.kl_estimator=k2", "reference.name=other"],
        *([f"algorithm={name}"] for name in ("grpo", "dr_grpo", "dapo", "cispo", "gspo", "trl", "open_instruct")),
    ],
)
def test_keys_with_an_effect_are_not_spoken_of(overrides: list[str]):
    assert list(cautions(load_config("story", overrides))) == []


@pytest.mark.parametrize(
    "name", ["gsm8k", "math", "ifeval", "code", "rubric", "open_instruct2", "gsm8k_api", "story_api"]
)
def test_no_preset_sets_a_key_without_effect(name: str):
    assert not [line for line in cautions(load_config(name)) if "has no effect" in line]
