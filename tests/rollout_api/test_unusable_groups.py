"""A group that cannot be trained on is left out with its reason; only a share of such groups ends a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_api import SmallApi
from transformers import Qwen3ForCausalLM

from shoal import load_config, train
from shoal.errors import DataError, RolloutApiError
from shoal.monitor.rows import read_rows
from shoal.rollout_api.scored_data import to_group
from shoal.rollout_api.trainer.journal import Entry, Journal
from shoal.tasks.story import story_tokenizer
from shoal.tasks.warm_start import Recipe, architecture


def group(*lengths: int, **values: Any) -> dict[str, Any]:
    """A context of two tokens and these numbers of sampled ones; the scores are 0, 1, 2, ..."""
    return {
        "tokens": [[5, 6, *range(7, 7 + length)] for length in lengths],
        "masks": [[-100, -100, *range(7, 7 + length)] for length in lengths],
        "scores": [float(score) for score in range(len(lengths))],
        "inference_logprobs": [[1.0, 1.0, *([-2.0] * length)] for length in lengths],
        **values,
    }


def shoals(**extras: Any) -> dict[str, Any]:
    return group(2, 2, generation_params={"shoal": extras})


BAD = {
    "a token beyond the vocabulary": group(2, 2) | {"tokens": [[5, 6, 7, 10**6]] * 2, "masks": [[-100] * 4] * 2},
    "a tiny temperature": group(2, 2, overrides=[{"temperature": 1e-300}, {}]),
    "a temperature in words": group(2, 2, generation_params={"temperature": "hot"}),
    "huge advantages": group(2, 2, advantages=[[0.0, 0.0, 1e300, 1e300]] * 2),
    "advantages NaN": group(2, 2, advantages=[[0.0, 0.0, float("nan"), 0.0]] * 2),
    "versions as text": shoals(versions="0"),
    "a version as text": shoals(versions=[[[0, "3"]], []]),
    "reward parts as a list": shoals(reward_parts=[[1.0], [0.0]]),
    "penalties as text": shoals(penalties=[{"length": "1"}, {}]),
    "a source as a list": shoals(source=["a"]),
    "an unknown stop reason": shoals(stop_reasons=["stop", "tired"]),
    "an integer of more than 64 bits": group(2, 2, generation_params={"note": 10**30}),
    "an epoch of more than 64 bits": shoals(epoch=10**30),
    "deep images": group(2, 2, images=json.loads("[" * 900 + "]" * 900)),
    "more tokens than the model has positions": group(2, 600),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    recipe = Recipe(layers=1, hidden=16, heads=2, kv_heads=1, head_dim=8, ffn=32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = Qwen3ForCausalLM(architecture(recipe, story_tokenizer()))
    made.config.max_position_embeddings = 256
    made.save_pretrained(folder)
    story_tokenizer().save_pretrained(folder)
    return folder


Configure = Callable[..., Any]


@pytest.fixture
def configure(model: Path) -> Configure:
    def make(url: str, *more: str, steps: int = 2) -> Any:
        small = ["run.prompts_per_step=2", "run.group_size=2", "run.preflight=false", "runtime.target=cpu"]
        quiet = ["evaluation.at_start=false", "evaluation.at_end=false", "evaluation.every=0", "checkpoint.every=0"]
        quiet += ["checkpoint.save_final=false", "monitor.tensorboard=false", "monitor.curve=false"]
        source = ["source=rollout_api", f"source.url={url}", "source.timeout=30", "source.seq_len=700"]
        where = [f"model.name={model}", f"run.steps={steps}", "engine.serve_port=0", "runtime.mixed_precision=none"]
        return load_config("story", [*small, *quiet, *source, *where, "monitor.progress=lines", *more])

    return make


def steps_of(folder: Path) -> list[dict[str, Any]]:
    return [row for row in read_rows(folder) if "count/completions" in row]


@pytest.mark.parametrize("name", BAD)
def test_a_bad_group_is_left_out_and_its_file_has_the_reason(name: str, configure: Configure, tmp_path: Path):
    api = SmallApi()
    api.queue += [group(2, 3), BAD[name], group(2, 3), group(2, 3)]
    with api.served() as url:
        train(configure(url), tmp_path / "run")
    rows = steps_of(tmp_path / "run")
    assert [row["rollout_api/unusable"] for row in rows] == [1, 0]
    assert [row["train/tokens"] for row in rows] == [5, 10]
    (file,) = (tmp_path / "run" / "unusable_groups").iterdir()
    written = json.loads(file.read_text())
    assert written["reason"] and written["group"]["scores"] == [0.0, 1.0]


def test_groups_that_come_without_texts_have_them_in_the_samples(configure: Configure, tmp_path: Path):
    api = SmallApi()
    api.queue += [group(2, 3), group(2, 3)]
    with api.served() as url:
        train(configure(url, steps=1), tmp_path / "run")
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples" / "step_1.jsonl").read_text().splitlines()]
    decode = story_tokenizer().decode
    assert [row["text"] for row in samples] == [decode([7, 8]), decode([7, 8, 9])] * 2


def test_a_group_whose_loss_is_not_finite_is_left_out_of_its_step(configure: Configure, tmp_path: Path):
    api = SmallApi()
    # The ratio to what the sampler says of itself overflows, which only the forward pass shows.
    bad = group(2, 2, inference_logprobs=[[1.0, 1.0, -1e6, -1e6]] * 2)
    api.queue += [group(2, 3), bad, group(2, 3), group(2, 3)]
    with api.served() as url:
        train(configure(url, "algorithm.old_logprobs=sampler"), tmp_path / "run")
    rows = steps_of(tmp_path / "run")
    assert [row["rollout_api/unusable"] for row in rows] == [1, 0]
    assert [row["train/tokens"] for row in rows] == [5, 10]
    (file,) = (tmp_path / "run" / "unusable_groups").iterdir()
    assert "loss" in json.loads(file.read_text())["reason"]


def test_a_bad_group_in_the_journal_does_not_stop_a_resumed_run(configure: Configure, tmp_path: Path):
    api = SmallApi()
    bad = [BAD["an integer of more than 64 bits"], BAD["versions as text"]]
    api.queue += [group(2, 3), bad[0], group(2, 3), bad[1]]
    with api.served() as url:
        train(configure(url, "checkpoint.every=1", steps=1), tmp_path / "run")
        # Fetched, acknowledged, and not trained on: what a kill leaves behind.
        Journal(tmp_path / "run").write(Entry(2, 2, "", api.take() or [], [None, None]))
        train(configure(url, f"resume={tmp_path / 'run'}"))
    assert [row["rollout_api/unusable"] for row in steps_of(tmp_path / "run")] == [1, 1]
    assert [row["rollout_api/replayed"] for row in steps_of(tmp_path / "run")] == [0, 1]


def test_a_run_ends_when_a_share_of_bad_groups_is_passed(configure: Configure, tmp_path: Path):
    api = SmallApi()
    api.queue += [group(2, 3), BAD["versions as text"], BAD["versions as text"], group(2, 3)] * 30
    with api.served() as url:
        cfg = configure(url, "source.max_unusable=0.3", steps=40)
        with pytest.raises(RolloutApiError, match=r"10 of the last 20 groups .* source\.max_unusable=0\.3"):
            train(cfg, tmp_path / "run")


def test_batches_of_overlong_groups_are_told_and_end_the_wait(configure: Configure, tmp_path: Path, capsys: Any):
    api = SmallApi()
    api.queue += [group(20, 20)] * 100
    with api.served() as url:
        cfg = configure(url, "source.seq_len=10", "source.overlong=drop")
        with pytest.raises(RolloutApiError, match=r"20 batches in a row .*80 sequences are longer than 10 tokens"):
            train(cfg, tmp_path / "run")
    assert "step 1: no group of batch 1 can be trained on" in capsys.readouterr().err


def test_null_for_a_temperature_is_none_given():
    data = group(1, 1, overrides=[{"temperature": None}, {}], generation_params={"temperature": 0.5})
    assert [one.overrides["temperature"] for one in to_group(data, "g", "env").completions] == [0.5, 0.5]


def test_lists_within_a_field_are_checked_for_numbers_that_no_file_holds():
    with pytest.raises(DataError, match=r"images\.a\.1: an integer of more than 64 bits"):
        to_group(group(1, 1, images={"a": [0, 2**70]}), "g", "env")
