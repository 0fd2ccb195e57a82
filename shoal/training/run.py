"""The three things a user does: train, evaluate, check."""

from __future__ import annotations

from collections.abc import Mapping
from logging import getLogger
from pathlib import Path
from time import perf_counter
from typing import Any

from shoal.config import ShoalConfig
from shoal.errors import TrainingError
from shoal.monitor.summary import closing_text, write_summary
from shoal.rewards.base import Verifier
from shoal.training.build import build_parts, build_run
from shoal.training.checkpoint import replace_folder
from shoal.training.evaluate import Evaluator
from shoal.training.interrupt import graceful_stop
from shoal.training.loop import train_loop
from shoal.training.preflight import CheckResult, run_checks
from shoal.training.state import Run

logger = getLogger(__name__)


def train(
    cfg: ShoalConfig, run_dir: Path | str | None = None, *, rewards: Mapping[str, Verifier] | None = None
) -> dict[str, Any]:
    """Trains, or goes on with the run in `cfg.resume`, and returns the summary (also in `run_dir/summary.json`).

    `run_dir` is made where it is missing; None takes `cfg.run.root / cfg.run.name`, or date and time. `rewards` are functions of a
    `Submission` by name, called in this process; they count with weight 1, or as `cfg.reward.verifiers` says.

    Raises:
        ConfigError, DataError: the configuration, the model or the data cannot be used.
        TrainingError: the run cannot go on, or the start-up check failed.
    """
    folder = choose_folder(cfg, run_dir)
    started = perf_counter()
    with graceful_stop() as stop:
        run = build_run(cfg, folder, lambda: bool(stop), rewards or {})
        status = "failed"
        try:
            if cfg.resume:
                run.restore()
            if cfg.run.preflight and run.step == 0:
                refuse_failed(run_checks(cfg, run.parts, folder))
            train_loop(run)
            status = "finished" if run.finished else "stopped"
            return finish(run, status, perf_counter() - started)
        finally:
            run.close(status)
