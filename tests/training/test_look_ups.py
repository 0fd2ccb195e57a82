"""A dry run looks up what a configuration names in folders and in the Hub's cache, and reads no row and no weight."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest
from datasets import Dataset, DatasetDict, config, load_dataset
from huggingface_hub import constants
from small_runs import Configure
from transformers import AutoModelForCausalLM

from shoal.cli.dry_run import plan_lines
from shoal.config import ShoalConfig
from shoal.errors import ShoalError

ROWS = Dataset.from_list([{"question": "?", "answer": "#### 1"}])


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a model's weights, or a row, fails the test."""

    def read(*arguments: object, **keywords: object) -> None:
        raise AssertionError("weights or rows were read")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", read)
    monkeypatch.setattr("shoal.tasks.dataset.read_rows", read)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    """No network, and a Hub cache that holds somebody/model at revision v1 and somebody/rows with a split train."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "data")
    model, commit = tmp_path / "hub" / "models--somebody--model", "1" * 40
    copytree(tiny_model, model / "snapshots" / commit)
    (model / "refs").mkdir()
    (model / "refs" / "v1").write_text(commit)
    (tmp_path / "rows").mkdir()
    ROWS.to_parquet(tmp_path / "rows" / "train.parquet")
    load_dataset(str(tmp_path / "rows"))
    (tmp_path / "data" / "rows").rename(tmp_path / "data" / "somebody___rows")


@pytest.fixture
def plan(configure: Configure, tmp_path: Path) -> Callable[..., str]:
    """The end of a dry run's plan, or what it is refused with."""

    def planned(*overrides: str) -> str:
        cfg: ShoalConfig = configure(*(one.replace("FOLDER", str(tmp_path)) for one in overrides))
        try:
            return "\n".join(plan_lines(cfg)).rpartition("\nMemory estimate")[2].replace("\n", ";")
        except ShoalError as error:
            return str(error)

    return planned


GSM8K = ("data.task=gsm8k", "data.eval_split=train")


def test_a_split_is_looked_up_in_local_folders(plan: Callable[..., str], tmp_path: Path):
    DatasetDict(train=ROWS, test=ROWS).save_to_disk(str(tmp_path / "splits"))
    ROWS.save_to_disk(str(tmp_path / "one"))
    (tmp_path / "files").mkdir()
    ROWS.to_parquet(tmp_path / "files" / "train.parquet")
    for folder, there in (("splits", "train, test"), ("files", "train")):
        place = f"data.path=FOLDER/{folder}"
        assert "peak" in plan(*GSM8K, place)
        for wrong in ("data.split=tain", "data.eval_split=tain"):
            assert plan(*GSM8K, place, wrong) == f"{tmp_path}/{folder}: no split tain; it has {there}"
    assert "peak" in plan(*GSM8K, "data.path=FOLDER/files", "data.split='train[:50%]'")
    assert "no split" in plan(*GSM8K, "data.path=FOLDER/files", "data.split='train+tain[:5]'")
    assert "peak" in plan(*GSM8K, "data.path=FOLDER/one", "data.split=any")


def test_data_and_its_split_are_looked_up_in_the_hubs_cache(plan: Callable[..., str], hub_cache: None):
    assert "peak" in plan(*GSM8K, "data.path=somebody/rows")
    assert plan(*GSM8K, "data.path=somebody/rows", "data.split=tain") == "somebody/rows: no split tain; it has train"
    for wrong in ("data.path=somebody/raws", "data.path=somebody/rows data.subset=none"):
        line = plan(*GSM8K, *wrong.split())
        assert line.startswith(wrong.split()[0].removeprefix("data.path=")) and "split train: " in line
        assert "\n" not in line


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ("model.name=somebody/model model.revision=v1", "peak"),
        ("model.name=somebody/model model.revision=v2", "'somebody/model', revision 'v2', here or on the Hub"),
        ("model.name=somebody/model model.revision=v2", "check model.name, model.revision"),
        ("model.name=somebody/other", "'somebody/other' here or on the Hub"),
        ("model.revision=v1", "model.revision=v1: "),
        ("model.tokenizer=somebody/model model.tokenizer_revision=v1", "peak"),
        ("model.tokenizer=somebody/model model.tokenizer_revision=v2", "tokenizer 'somebody/model', revision 'v2',"),
        (
            "model.tokenizer=somebody/model model.tokenizer_revision=v2",
            "check model.tokenizer, model.tokenizer_revision",
        ),
        ("model.tokenizer=somebody/other", "no tokenizer 'somebody/other' here or on the Hub"),
        ("model.tokenizer=somebody/other", "check model.tokenizer and HF_HOME"),
        ("model.tokenizer_revision=v1", "is a local folder, which has no revisions; leave it out"),
        ("model.train=lora model.lora.target_modules=[q_proj]", "peak"),
        ("model.train=lora model.lora.target_modules=[q_prj]", "has no layer 'q_prj'; its linear layers are down_proj"),
        ("model.train=lora model.lora.layers=[0,2]", "has nothing to adapt in layer 2"),
        ("model.name=story model.train=lora model.lora.target_modules=[q_prj]", "story has no layer 'q_prj'"),
        ("algorithm.kl_coef=0.1 reference.name=somebody/model reference.revision=v1", "peak"),
        ("algorithm.kl_coef=0.1 reference.name=somebody/other", "'somebody/other' here or on the Hub"),
        ("algorithm.kl_coef=0.1 reference.name=somebody/other", "check reference.name and HF_HOME"),
    ],
)
def test_models_revisions_tokenizers_and_layers_are_looked_up(
    plan: Callable[..., str], hub_cache: None, overrides: str, line: str
):
    found = plan(*overrides.split())
    assert line in found and "\n" not in found
