"""What is known of a model without its weights: the same as with them, and told before they are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from tiny_models import ARCHITECTURES, SHAPE, make_config, make_tokenizer
from transformers import GenerationConfig, LlamaConfig

from shoal.cli.dry_run import plan_lines
from shoal.config import ShoalConfig, load_config
from shoal.engines.stopping import eos_ids
from shoal.engines.vllm.arguments import policy_arguments
from shoal.errors import ConfigError
from shoal.learners.memory_plan import estimate
from shoal.learners.model import Policy, load_policy
from shoal.models.info import ModelInfo, read_info
from shoal.runtime import resolve_runtime
from shoal.training.policy import model_info, open_policy

Folder = Callable[[str], Path]


def load(cfg: ShoalConfig) -> Policy:
    return load_policy(cfg.model, resolve_runtime(cfg.runtime, cfg.model))


def read(folder: Path, **keys: Any) -> ModelInfo:
    return read_info(make_config(folder, **keys).model)


@pytest.fixture(params=["missing", "broken"])
def unreadable(request: pytest.FixtureRequest, model_folder: Folder, tmp_path: Path) -> Path:
    """The folder of a Llama whose weights cannot be read."""
    folder = copytree(model_folder("llama"), tmp_path / "unreadable")
    [weights] = folder.glob("*.safetensors")
    weights.unlink()
    if request.param == "broken":
        weights.write_bytes(b"no weights")
    return folder


def test_names_lengths_end_ids_and_targets_are_known_where_the_weights_cannot_be_read(unreadable: Path):
    found = read(unreadable, model__train="lora", model__lora__r=4)
    assert (found.name, found.vocabulary, found.max_positions, found.end_ids) == (str(unreadable), 48, 256, (1,))
    assert len(found.tokenizer) == 48
    assert found.adapter is not None
    assert (found.adapter.rank, len(found.adapter.layers), found.adapter.on_head) == (4, 14, False)
    assert found.adapter.targets == (
        "down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"
    )  # fmt: skip
    assert {one.device.type for one in found.skeleton.parameters()} == {"meta"}


@pytest.mark.parametrize("train", ["full", "lora"])
def test_a_dry_run_reads_no_weights(unreadable: Path, train: str):
    cfg = make_config(unreadable, model__train=train, runtime__target="cpu")
    assert any(line.startswith("  peak ") for line in plan_lines(cfg))
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load(cfg)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_known_without_weights_is_what_the_loaded_model_says(model_folder: Folder, name: str):
    policy = load(make_config(model_folder(name)))
    assert list(policy.info.end_ids) == eos_ids(policy.model, policy.tokenizer)
    assert policy.vocabulary == policy.model.get_input_embeddings().num_embeddings
    assert policy.info.name == policy.model.name_or_path
    assert policy.info.count_parameters()[0] == sum(one.numel() for one in policy.model.parameters())


def test_end_ids_are_those_of_the_architecture_where_no_generation_config_was_saved(tmp_path: Path):
    LlamaConfig(**{**SHAPE, "eos_token_id": [3, 5]}).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert read(tmp_path).end_ids == (1, 3, 5)
    GenerationConfig(eos_token_id=7).save_pretrained(tmp_path)
    assert read(tmp_path).end_ids == (1, 7)


@pytest.mark.parametrize(
    "lora",
    [{}, {"target_modules": ["q_proj", "lm_head"]}, {"target_modules": ["q_proj", "up_proj"], "layers": [1]}],
)
def test_the_adapted_layers_are_those_that_peft_adapts(model_folder: Folder, tmp_path: Path, lora: dict[str, Any]):
    keys: dict[str, Any] = {f"model__lora__{key}": value for key, value in lora.items()}
    cfg = make_config(model_folder("llama"), model__train="lora", model__lora__r=4, **keys)
    policy = load(cfg)
    adapted = [name for name, one in policy.causal_lm.named_modules() if hasattr(one, "lora_A")]
    trained = sum(one.numel() for one in policy.model.parameters() if one.requires_grad)
    policy.model.save_pretrained(tmp_path)
    policy.tokenizer.save_pretrained(tmp_path)
    saved = read(tmp_path, model__train="lora", model__lora__r=4)
    assert saved.name == str(model_folder("llama"))
    for info in (policy.info, saved):
        assert info.adapter is not None
        assert list(info.adapter.layers) == adapted
        assert info.adapter.on_head == ("lm_head" in lora.get("target_modules", []))
        assert info.adapter_parameters() == trained
    assert saved.adapter == policy.info.adapter


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"target_modules": ["q_proj", "query"]}, "has no layer 'query'; its linear layers are down_proj, gate_proj"),
        ({"layers": [7]}, r"has nothing to adapt in the layers \[7\]"),
    ],
)
def test_layers_that_are_not_there_are_told_before_weights_are_read(unreadable: Path, keys: dict[str, Any], line: str):
    changed = {f"model__lora__{key}": value for key, value in keys.items()}
    with pytest.raises(ConfigError, match=line):
        load(make_config(unreadable, model__train="lora", **changed))


def test_the_built_in_model_is_known_before_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cfg = load_config("story", ["runtime.target=cpu"])
    runtime = resolve_runtime(cfg.runtime, cfg.model)
    made = open_policy(cfg, runtime).info
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))
    planned = model_info(cfg)
    assert not (tmp_path / "cache").exists()
    assert planned.tokenizer.get_vocab() == made.tokenizer.get_vocab()
    for name in ("vocabulary", "max_positions", "end_ids"):
        assert getattr(planned, name) == getattr(made, name)
    assert estimate(cfg, runtime, planned) == estimate(cfg, runtime, made)


def test_vllm_is_started_with_what_is_known_without_weights(unreadable: Path):
    cfg = make_config(unreadable, model__train="lora", model__lora__r=12, weight_sync__kind="lora")
    cfg.engine.kind = "vllm_server"
    runtime = resolve_runtime(cfg.runtime, cfg.model)
    arguments = policy_arguments(cfg, read_info(cfg.model), replace(runtime, device=torch.device("cpu")))
    assert (arguments.model, arguments.max_lora_rank, len(arguments.lora_targets)) == (str(unreadable), 16, 7)
