"""A monitor that shows nothing and writes metrics.jsonl and samples only."""

from collections.abc import Callable
from pathlib import Path

import pytest

from shoal.config import ShoalConfig
from shoal.monitor.monitor import Monitor


@pytest.fixture
def cfg() -> ShoalConfig:
    """Nothing shown; no trackers but metrics.jsonl and samples. A test switches on what it is about."""
    cfg = ShoalConfig()
    cfg.monitor.progress = "off"
    cfg.monitor.tensorboard = False
    cfg.monitor.curve = False
    return cfg


@pytest.fixture
def open_monitor(cfg: ShoalConfig, tmp_path: Path) -> Callable[[], Monitor]:
    """Opens a monitor on the same run folder, as each start of a run does."""
    return lambda: Monitor(cfg, tmp_path / "run", total_steps=6, decode=lambda ids: f"prompt {ids}")
