"""The three things a user does: train, evaluate, check."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from logging import INFO, WARNING, getLogger
from pathlib import Path
from shutil import rmtree, which
from typing import Any

from safetensors import SafetensorError

from shoal.build import build_parts, build_run
from shoal.config import ShoalConfig
from shoal.config.resume import refuse_changes
from shoal.errors import BudgetError, ConfigError, ShoalError, StartRefused, TrainingError
from shoal.files import file_trouble, only_trainer, replace_folder
from shoal.monitor.log_file import run_log
from shoal.monitor.progress import ProgressDisplay
from shoal.monitor.samples import write_samples
from shoal.monitor.summary import closing_text, write_summary
from shoal.rewards.base import Verifier
from shoal.run_folder import (
    SAVED,
    find_resume,
    gone_if_refused,
    has_checkpoint,
    load_saved,
    new_run_folder,
    save_config,
)
from shoal.training.beside import view_beside
from shoal.training.evaluate import Evaluator, sampling_error
from shoal.training.interrupt import graceful_stop
from shoal.training.loop import train_loop
from shoal.training.preflight import CheckResult, run_checks
from shoal.training.state import Run
from shoal.training.status import status_beside
from shoal.training.watchdog import watchdog

logger = getLogger(__name__)

LITTLE = 200 * 2**20
"""Bytes that a smoke test may leave behind."""


def train(
    cfg: ShoalConfig, run_dir: Path | str | None = None, *, rewards: Mapping[str, Verifier] | None = None
) -> dict[str, Any]:
    """Trains and returns the summary, which is also in `run_dir/summary.json`.

    With `cfg.resume` set, the run that it names is gone on with, from that checkpoint or the newest; `run_dir` can only
    be its folder. Otherwise `run_dir` None makes a new folder under `cfg.run.root`. `rewards` are functions of a
    `Submission` by name, called in this process; with `cfg.reward.verifiers` empty they replace the task's own, each
    with weight 1.

    Raises:
        ConfigError, DataError: the configuration, the model, the data or the folder cannot be used.
        TrainingError: the run cannot go on, or the start-up check failed.
    """
    folder = run_folder(cfg, run_dir)
    with (
        gone_if_refused(folder, Path(cfg.run.root)),
        on_disk(folder),
        only_trainer(folder),
        run_log(folder),
        graceful_stop() as stop,
        ExitStack() as opened,
    ):
        run = build_run(cfg, folder, lambda: bool(stop), rewards or {})
        status = "failed"
        try:
            if not (folder / SAVED).exists():
                save_config(cfg, [], folder)
            opened.enter_context(status_beside(run))
            if cfg.view:
                opened.enter_context(view_beside(folder, run.monitor.progress.message))
            if cfg.resume:
                run.restore()
            if cfg.run.preflight and run.step == 0:
                run.parts.sync.publish(run.parts.learner.version).wait(cfg.weight_sync.timeout)
                refuse_failed(run_checks(cfg, run.parts, folder))
            with watchdog(run.standing, run.monitor.message, cfg.run.stall_warning):
                train_within_budget(run)
            status = "finished" if run.finished else "stopped"
            if status == "stopped" or cfg.checkpoint.every:
                run.save_if_new()
            if status == "finished" and cfg.checkpoint.save_final:
                replace_folder(folder / "model", run.parts.learner.export)
            if status == "finished" and cfg.run.made_up_advantages:
                leave_little(run)
        except ShoalError as error:
            run.monitor.failure(str(error))
            raise
        finally:
            run.close(status)
        return conclude(run, status)


@contextmanager
def on_disk(folder: Path) -> Iterator[None]:
    """Says in one line what the file system refused, and how to go on with the run.

    Raises:
        TrainingError: in place of the error that the block raised for it.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        trouble = file_trouble(error)
        if trouble is None and not isinstance(error, SafetensorError):
            raise
        then = f": once that is mended, go on with shoal train resume={folder}" if has_checkpoint(folder) else ""
        raise TrainingError(f"{trouble or error} (in the run {folder}){then}") from error


def leave_little(run: Run) -> None:
    """Takes away what a smoke test wrote of a large model: it has shown that it can be written."""
    folders = [run.folder / name for name in ("checkpoints", "best", "model")]
    size = sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())
    if size > LITTLE:
        for folder in folders:
            rmtree(folder, ignore_errors=True)
        run.monitor.message(f"smoke test: its checkpoints and models ({size / 2**30:.1f} GiB) are taken away again")


def train_within_budget(run: Run) -> None:
    """The loop; where the judge's budget ends it, the run is saved as it was after its last step.

    Raises:
        TrainingError: the budget is spent; the line says how to go on.
    """
    try:
        train_loop(run)
    except BudgetError as error:
        run.save_if_new()
        raise BudgetError(
            f"{error}; the run is saved after step {run.step}: go on with shoal train resume={run.folder} "
            f"reward.judge.budget={2 * run.cfg.reward.judge.budget:g}"
        ) from error


def run_folder(cfg: ShoalConfig, run_dir: Path | str | None) -> Path:
    """Where the run writes.

    Raises:
        ConfigError: a new run, and the folder holds the checkpoints of another; or the configuration of a resumed run
            differs from the saved one in a key that cannot change.
    """
    if cfg.resume:
        folder = Path(run_dir) if run_dir else find_resume(cfg.resume, Path(cfg.run.root))
        if has_checkpoint(folder) and (folder / SAVED).is_file():
            refuse_changes(load_saved(folder), cfg, folder)
        return folder
    folder = Path(run_dir) if run_dir else new_run_folder(cfg)
    if has_checkpoint(folder):
        raise ConfigError(f"{folder} holds a run with checkpoints: choose another folder, or set resume={folder}")
    return folder


def conclude(run: Run, status: str) -> dict[str, Any]:
    """Writes summary.json and says how it went."""
    summary = write_summary(
        run.folder,
        config=asdict(run.cfg),
        seconds_total=run.monitor.seconds_total,
        resume_count=run.monitor.resume_count,
        status=status,
        best_by=run.best_by,
    )
    if status == "stopped":
        run.monitor.message(f"stopped after step {run.step}; go on with: shoal train resume={run.folder}")
    else:
        text = closing_text(summary, run.folder, run.samples or [], run.parts.decode, next_steps=what_next(run))
        run.monitor.progress.message(text)
    return summary


def command() -> str:
    """How this terminal calls `shoal`: by its path where the environment is not activated."""
    if which("shoal"):
        return "shoal"
    script = Path(sys.executable).with_name("shoal")
    return os.path.relpath(script) if script.exists() else f"{sys.executable} -m shoal.cli"


def what_next(run: Run) -> list[str]:
    """Commands that make sense after this run."""
    shoal = command()
    steps = [f"{shoal} view {run.folder}"]
    steps += [f"{shoal} eval model={run.folder / 'model'}"] if (run.folder / "model").exists() else []
    if run.checkpoints.steps():
        steps.append(f"{shoal} train resume={run.folder} run.steps={2 * run.total_steps}")
    if run.cfg.data.task == "story":
        steps.append(f"{shoal} train --multirun algorithm=grpo,dapo,cispo run.seed=0,1")
        steps.append(f"{shoal} train --config-name gsm8k model.name=Qwen/Qwen3-0.6B")
    return steps


def evaluate(
    cfg: ShoalConfig,
    run_dir: Path | str | None = None,
    *,
    rewards: Mapping[str, Verifier] | None = None,
    save: Path | str | None = None,
) -> dict[str, float]:
    """Accuracy, pass@k, mean length of `cfg.model` on the held-out prompts, by name, with their `sampling_error`.

    Writes nothing but the completions, to the file `save` where it is given, in the form of a run's samples.
    """
    parts = build_parts(cfg, rewards or {})
    display = ProgressDisplay(cfg.monitor.progress, 0)
    try:
        parts.sync.publish(0).wait(cfg.weight_sync.timeout)
        metrics, groups = Evaluator(cfg, parts, display).run()
    finally:
        display.close()
        parts.close()
    if save is not None:
        write_samples(Path(save), groups, parts.decode)
    return {**metrics, **sampling_error(groups)}


def check(cfg: ShoalConfig) -> list[CheckResult]:
    """The start-up check by itself. Writes nothing."""
    parts = build_parts(cfg, {})
    try:
        parts.sync.publish(0).wait(cfg.weight_sync.timeout)
        return run_checks(cfg, parts, Path(cfg.run.root))
    finally:
        parts.close()


def refuse_failed(results: list[CheckResult]) -> None:
    """Logs the start-up check and stops the run where it found something.

    Raises:
        StartRefused: a check failed.
    """
    for result in results:
        logger.log(WARNING if result.ok is None else INFO, "start-up check, %s: %s", result.name, result.detail)
    failed = [result for result in results if result.ok is False]
    if failed:
        raise StartRefused(
            "start-up check: "
            + "; ".join(f"{result.name}: {result.detail}" for result in failed)
            + " (run.preflight=false starts all the same)"
        )
