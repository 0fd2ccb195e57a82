"""Configurations, learners and runs of a tiny model, for the tests of the keys."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from huggingface_hub import constants

from effects.made import SMALL, by_length, save_tiny_model
from effects.registry import keys_of
from shoal.api import train
from shoal.build import build_run
from shoal.config import ShoalConfig
from shoal.config.keys import set_value, value_of
from shoal.config.validate import validate
from shoal.learners.local import LocalLearner
from shoal.learners.model import load_policy
from shoal.rewards.base import Verifier
from shoal.runtime import resolve_runtime
from shoal.tasks import story
from shoal.training.state import Run

Settings = Callable[..., ShoalConfig]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny_model"))


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another random model, of three layers."""
    return save_tiny_model(tmp_path_factory.mktemp("other_model"), layers=3, seed=1)


@pytest.fixture(autouse=True)
def small_and_clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A story task of a few problems; no look at the Hub; torch's threads, which runs set, as they were."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(story, "TRAIN_PROBLEMS", 12)
    monkeypatch.setattr(story, "HELD_OUT_PROBLEMS", 8)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test runs as it is, and once more for each of its keys with that key ignored: then it must fail."""
    keys = keys_of(metafunc.function)
    if keys:
        must_fail = (pytest.mark.slow, pytest.mark.xfail(strict=True))
        ignored = [pytest.param(key, id=f"without {key}", marks=must_fail) for key in keys]
        metafunc.parametrize("ignored_key", [pytest.param(None, id="as set"), *ignored], indirect=True)


@pytest.fixture
def ignored_key(request: pytest.FixtureRequest) -> str | None:
    """The key that `settings` leaves as it is, whatever the test asks for."""
    return getattr(request, "param", None)


@pytest.fixture
def settings(
    request: pytest.FixtureRequest, ignored_key: str | None, tiny_model: Path, tmp_path: Path
) -> Iterator[Settings]:
    """Makes checked configurations: the small one with changes by dotted key.

    A test that is registered for a key must have made configurations with two different values of it.
    """
    keys = keys_of(request.function) if ignored_key is None else []
    seen: dict[str, set[str]] = defaultdict(set)

    def make(changes: dict[str, Any] | None = None) -> ShoalConfig:
        cfg = ShoalConfig()
        base = {**SMALL, "model.name": str(tiny_model), "run.root": str(tmp_path / "outputs")}
        for name, value in {**base, **(changes or {})}.items():
            set_value(cfg, name, base.get(name, value_of(cfg, name)) if name == ignored_key else value)
        for key in keys:
            seen[key].add(repr(value_of(cfg, key)))
        validate(cfg)
        return cfg

    yield make
    for key in keys:
        assert len(seen[key]) >= 2, f"the test of {key} never changed it: only {seen[key]}"


@pytest.fixture
def make_learner() -> Callable[[ShoalConfig], LocalLearner]:
    """A learner of `model.name`; what starts at random starts the same each time."""

    def make(cfg: ShoalConfig) -> LocalLearner:
        torch.manual_seed(0)
        runtime = resolve_runtime(cfg.runtime, cfg.model)
        return LocalLearner(load_policy(cfg.model, runtime), cfg, runtime, total_steps=cfg.run.steps)

    return make


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., Path]:
    """Runs `train` in a new folder and gives it. The reward is a completion's length, unless `reward` is given."""

    def run(cfg: ShoalConfig, reward: Verifier = by_length) -> Path:
        folder = tmp_path / f"run_{len(list(tmp_path.glob('run_*')))}"
        train(cfg, folder, rewards={"made": reward})
        return folder

    return run


@pytest.fixture
def open_run(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """A run that is ready for step 1."""
    opened: list[Run] = []

    def build(cfg: ShoalConfig, reward: Verifier = by_length) -> Run:
        run = build_run(cfg, tmp_path / f"opened_{len(opened)}", lambda: False, {"made": reward})
        run.parts.sync.publish(0).wait()
        opened.append(run)
        return run

    yield build
    for run in opened:
        run.close("finished")
