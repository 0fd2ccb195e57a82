"""A tiny model on disk and the parts of a run on top of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import Qwen3ForCausalLM

from shoal.build import build_parts
from shoal.config import ShoalConfig
from shoal.tasks import story
from shoal.tasks.story import story_tokenizer
from shoal.tasks.warm_start import Recipe, architecture
from shoal.training.parts import Parts


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Qwen3 and the story task's tokenizer."""
    folder = tmp_path_factory.mktemp("small_model")
    recipe = Recipe(layers=2, hidden=32, heads=2, kv_heads=1, head_dim=16, ffn=64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(architecture(recipe, story_tokenizer()))
    model.save_pretrained(folder)
    story_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def make_parts(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Parts]]:
    """Engine, learner and weight sync over one module; `change` edits the configuration."""
    monkeypatch.setattr(story, "TRAIN_PROBLEMS", 8)
    monkeypatch.setattr(story, "HELD_OUT_PROBLEMS", 4)
    made: list[Parts] = []

    def make(change: Callable[[ShoalConfig], None] = lambda cfg: None) -> Parts:
        cfg = ShoalConfig()
        cfg.model.name = str(small_model)
        cfg.runtime.target, cfg.runtime.mixed_precision = "cpu", "none"
        cfg.weight_sync.self_check_every = 1
        cfg.optimizer.lr = 0.1
        change(cfg)
        made.append(build_parts(cfg, {}))
        return made[-1]

    yield make
    for parts in made:
        parts.close()
