"""A tiny random model that answers story problems, and runs of a few steps with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path

import easy_rewards  # noqa: F401 - registers the verifiers
import pytest
import torch
from small_runs import SMALL, Configure
from transformers import Qwen3ForCausalLM

from shoal.config import ShoalConfig, load_config
from shoal.config.keys import all_keys, set_value
from shoal.config.overrides import GROUPS, parse_overrides
from shoal.config.validate import validate
from shoal.tasks import story
from shoal.tasks.story import story_tokenizer
from shoal.tasks.warm_start import Recipe, architecture

REWARD = "reward.verifiers.starts_with_a_digit=1"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Qwen3 of two layers and the story task's tokenizer."""
    folder = tmp_path_factory.mktemp("tiny_model")
    tokenizer = story_tokenizer()
    recipe = Recipe(layers=2, hidden=32, heads=2, kv_heads=1, head_dim=16, ffn=64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(architecture(recipe, tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def few_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    """A story task of 9 training problems, so that epochs end in the middle of a step."""
    monkeypatch.setattr(story, "TRAIN_PROBLEMS", 9)
    monkeypatch.setattr(story, "HELD_OUT_PROBLEMS", 12)


@pytest.fixture(scope="session")
def composed(tiny_model: Path) -> Callable[..., ShoalConfig]:
    """The small configuration with some groups chosen. Composing takes longer than a run: each is made once."""
    return cache(lambda *groups: load_config("story", [f"model.name={tiny_model}", *SMALL, REWARD, *groups]))


@pytest.fixture
def configure(composed: Callable[..., ShoalConfig], few_problems: None) -> Configure:
    """A small configuration with overrides of groups and single keys; `resume` goes by keyword."""

    def make(*overrides: str, resume: Path | None = None) -> ShoalConfig:
        parsed = parse_overrides(overrides)
        groups = [text for text, one in zip(overrides, parsed, strict=True) if one.key_or_group in GROUPS]
        cfg = deepcopy(composed(*groups))
        for override in parsed:
            if override.key_or_group not in GROUPS:
                assert override.key_or_group in all_keys()
                set_value(cfg, override.key_or_group, override.value())
        cfg.resume = str(resume) if resume else None
        validate(cfg)
        return cfg

    return make


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """Runs set torch's threads for the whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
