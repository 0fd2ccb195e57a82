"""Sweeps: Hydra's sweeper and launcher over one job function, and the table at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from shoal.config.compose import compose_config, hydra_app, one_line_errors, to_config
from shoal.config.root import ShoalConfig
from shoal.errors import ConfigError

COLUMNS = ("accuracy_before", "accuracy_after", "reward_last", "seconds_total")


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep: its overrides, its folder, and its summary (empty where it failed)."""

    overrides: list[str]
    folder: Path
    summary: dict[str, Any]


def check_sweep(name: str, overrides: Sequence[str], folder: Path) -> list[tuple[list[str], ShoalConfig]]:
    """Every run of the sweep, checked before the first one starts: its overrides and its configuration.

    Raises:
        ConfigError: one of them cannot work; the line names its overrides.
    """
    with hydra_app(name, folder), one_line_errors(folder):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        parsed = OverridesParser.create(hydra.config_loader).parse_overrides(list(overrides))
        combinations = BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]
    runs = []
    for combination in combinations:
        try:
            runs.append((combination, to_config(compose_config(name, combination, folder))))
        except ConfigError as error:
            raise ConfigError(f"in the run {' '.join(combination)}: {error}") from error
    return runs


def run_sweep(
    name: str, overrides: Sequence[str], presets: Path, folder: Path, job: Callable[[DictConfig], Any]
) -> None:
    """Runs `job` once for every combination, in subfolders 0, 1, 2 ... of `folder`, by Hydra's sweeper and launcher.

    All runs are tried; then what the first failing one raised is raised.
    """
    with hydra_app(name, presets) as settings, one_line_errors(presets):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        quiet = ["hydra/job_logging=none", "hydra/hydra_logging=none", f"hydra.sweep.dir='{folder}'"]
        hydra.multirun(name, job, [*overrides, *settings, *quiet], with_log_configuration=False)


def collect_runs(folder: Path, combinations: Sequence[Sequence[str]]) -> list[SweepRun]:
    """What the runs of a sweep left behind, in their order."""
    runs = []
    for number, overrides in enumerate(combinations):
        file = folder / str(number) / "summary.json"
        summary = json.loads(file.read_text()) if file.is_file() else {}
        runs.append(SweepRun(list(overrides), folder / str(number), summary))
    return runs


def format_table(runs: Sequence[SweepRun]) -> str:
    """The table of a sweep, one line a run, with the overrides that not all runs share.

    A run without a summary has failed.
    """
    shared = set.intersection(*(set(run.overrides) for run in runs)) if len(runs) > 1 else set()
    rows = [["run", *(column.replace("_", " ") for column in COLUMNS), "status", "overrides", "folder"]]
    for number, run in enumerate(runs):
        values = [_number(run.summary.get(column)) for column in COLUMNS]
        status = str(run.summary.get("status", "failed"))
        rows.append(
            [
                str(number),
                *values,
                status,
                " ".join(word for word in run.overrides if word not in shared),
                str(run.folder),
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
