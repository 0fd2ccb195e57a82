"""What of the DeepSpeed learner needs no DeepSpeed: its settings, the division over ranks, checkpoints in parts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import make_batch, make_config

from shoal.errors import ConfigError, TrainingError
from shoal.learners.deepspeed.passes import share_of, split_evenly
from shoal.learners.deepspeed.saved import part_name, read_parts, saved_weights, write_part
from shoal.learners.deepspeed.settings import deepspeed_settings
from shoal.learners.step import minibatches
from shoal.runtime import resolve_runtime


def settings_of(**keys: Any) -> dict[str, Any]:
    cfg = make_config(Path("unused"), learner__kind="deepspeed", **keys)
    return deepspeed_settings(cfg, resolve_runtime(cfg.runtime, cfg.model))


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_every_sequence_is_one_ranks_in_whole_groups_with_the_weight_of_the_whole_step(
    world: int, aggregation: str
) -> None:
    (whole,) = minibatches(make_batch(), 1, aggregation, False)
    shares = [share_of(whole, rank, world) for rank in range(world)]
    assert sorted(place for share in shares for place in share.places) == sorted(whole.places)
    groups = [{one.group for one in share.sequences} for share in shares]
    assert sum(len(one) for one in groups) == len(set().union(*groups))
    weights = dict(zip(whole.places, whole.weights, strict=True))
    for share in shares:
        for place, weight in zip(share.places, share.weights, strict=True):
            np.testing.assert_array_equal(weight, weights[place])


@pytest.mark.parametrize(("sizes", "parts"), [([3, 1, 1, 3], 2), ([5], 3), ([], 2), ([1] * 7, 4)])
def test_consecutive_items_are_divided_without_one_lost(sizes: list[int], parts: int) -> None:
    bounds = split_evenly(sizes, parts)
    assert (bounds[0], bounds[-1], len(bounds)) == (0, len(sizes), parts + 1)
    assert bounds == sorted(bounds)


def test_a_file_of_the_users_is_merged_with_what_shoals_keys_say(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    theirs = {"zero_optimization": {"stage": "auto", "stage3_max_live_parameters": 1e6}, "wall_clock_breakdown": True}
    file.write_text(json.dumps(theirs))
    found = settings_of(learner__deepspeed_config=str(file), learner__zero_stage=3)
    assert found["zero_optimization"]["stage"] == 3
    assert found["zero_optimization"]["stage3_max_live_parameters"] == 1e6
    assert found["wall_clock_breakdown"] is True


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"zero_optimization": {"stage": 1}}', r"sets zero_optimization\.stage=1, which learner\.zero_stage says"),
        ('{"optimizer": {"type": "Adam"}}', r"sets optimizer\.type='Adam', which optimizer\.\* says"),
        ('{"gradient_accumulation_steps": 4}', r"learner\.micro_batch_tokens says in Shoal"),
        ("[1]", "is no JSON object"),
        ("{", "is not JSON"),
    ],
)
def test_a_file_that_contradicts_shoals_keys_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "ds.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        settings_of(learner__deepspeed_config=str(file))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        settings_of(learner__deepspeed_config=str(tmp_path / "none.json"))


def test_sixteen_bits_keep_sums_of_gradients_in_float32() -> None:
    found = settings_of(model__dtype="bfloat16")
    assert found["bf16"]["enabled"] and found["bf16"]["check_grad_overflow"]
    assert found["data_types"] == {"grad_accum_dtype": "fp32"}
    assert "bf16" not in settings_of()


def test_parts_of_a_checkpoint_are_read_as_one_and_none_may_be_missing(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no part of a DeepSpeed learner"):
        read_parts(tmp_path)
    for rank, name in enumerate(("a", "b")):
        write_part(tmp_path, rank, 2, {name: {"weight": torch.full((2,), float(rank))}}, {"version": 3})
    counts, tensors = read_parts(tmp_path)
    assert counts["version"] == 3
    assert {name: one["weight"].tolist() for name, one in tensors.items()} == {"a": [0, 0], "b": [1, 1]}
    assert {name: one.tolist() for name, one in saved_weights(tmp_path).items()} == {"a": [0, 0], "b": [1, 1]}
    (tmp_path / part_name(1, 2)).unlink()
    with pytest.raises(TrainingError, match=r"learner-00002-of-00002\.pt is missing: 2 ranks wrote one each"):
        read_parts(tmp_path)


@pytest.mark.slow
def test_a_gather_within_another_leaves_the_outer_one_whole_and_tied_weights_are_gathered_once():
    """ZeRO-3 would shard a parameter again at the end of the inner gather; of a sharded one numel() is 0."""
    pytest.importorskip("deepspeed", reason="needs DeepSpeed")
    program = Path(__file__).with_name("nested_gathers.py")
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=240, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "sharded": 0,
        "within": 12,
        "after the inner": 12,
        "twice named": 12,
        "after all": 0,
        "names": ["embedding.weight"],
    }
