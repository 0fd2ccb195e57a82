"""`shoal slurm submit`: one job for each stage, each stage after the one before it, from its model."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from shoal.config import load_config
from shoal.config.nodes.run import RunConfig
from shoal.config.overrides import overridden
from shoal.errors import ConfigError
from shoal.run_folder import SAVED
from shoal.slurm.commands import call
from shoal.slurm.records import Event, add_event

SCRIPT = Path("slurm/grpo.sbatch")
SITE_SECONDS = 60.0


@dataclass(frozen=True)
class Site:
    """What the site's file says that is needed before a job runs."""

    file: Path
    options: tuple[str, ...]
    run_root: str


@dataclass(frozen=True)
class Stage:
    """A run: a preset (or a YAML file) with overrides, and the folder that it writes."""

    preset: str
    overrides: tuple[str, ...]
    run: Path

    @property
    def words(self) -> list[str]:
        """The arguments of the script."""
        return [self.preset, *self.overrides, f"run.root={self.run.parent}", f"run.name={self.run.name}"]


def repository() -> Path:
    """The folder that holds `slurm/`: SHOAL_HOME, or the checkout that this package is installed from.

    Raises:
        ConfigError: it is not there.
    """
    given = os.environ.get("SHOAL_HOME")
    folder = Path(given) if given else Path(__file__).parents[2]
    if not (folder / SCRIPT).is_file():
        raise ConfigError(f"there is no {folder / SCRIPT}: set SHOAL_HOME to a checkout of Shoal's repository")
    return folder.absolute()


def read_site(file: Path, home: Path) -> Site:
    """Sources the site's file. Raises ConfigError where it is not there or fails."""
    if not file.is_file():
        raise ConfigError(f"SHOAL_SITE={file}: no such file")
    script = 'source "$1" >&2 && printf "%s\\n%s\\n" "${SHOAL_SBATCH:-}" "${SHOAL_RUN_ROOT:-}"'
    done = subprocess.run(
        ["bash", "-c", script, "bash", str(file)],
        capture_output=True,
        text=True,
        timeout=SITE_SECONDS,
        env={**os.environ, "SHOAL_HOME": str(home)},
    )
    if done.returncode:
        raise ConfigError(f"{file} fails: {done.stderr.strip()}")
    options, root = done.stdout.split("\n")[:2]
    return Site(file.absolute(), tuple(shlex.split(options)), root or RunConfig().root)


def make_stages(texts: Sequence[Sequence[str]], root: str, now: datetime) -> list[Stage]:
    """Stages of (preset, overrides ...), each but the first starting from the model of the one before it.

    Raises:
        ConfigError: a configuration that could not work, an override too many, or two stages of one name.
    """
    stages: list[Stage] = []
    for number, (preset, *overrides) in enumerate(texts):
        given = overridden(overrides)
        stem = Path(preset).stem
        name = str(given.get("run.name") or f"{stem}-{now:%Y%m%d-%H%M%S}" + (f"-{number + 1}" if number else ""))
        run = (Path(str(given.get("run.root") or root)) / name).absolute()
        kept = [text for text in overrides if text.partition("=")[0] not in ("run.name", "run.root")]
        if any(one.run == run for one in stages):
            raise ConfigError(f"two stages have the run folder {run}: give each a run.name of its own")
        if stages and "model.name" not in given:
            kept.append(f"model.name={stages[-1].run / 'model'}")
        stage = Stage(preset, tuple(kept), run)
        check_stage(stage)
        stages.append(stage)
    return stages


def check_stage(stage: Stage) -> None:
    """Composes the configuration, so that a mistake is refused here and not by a job. Raises ConfigError."""
    path = Path(stage.preset)
    own = path.suffix == ".yaml" or "/" in stage.preset
    load_config(path.stem if own else stage.preset, stage.words[1:], path.parent if own else None)


def submit(stages: Sequence[Stage], site: Site, home: Path, options: Sequence[str]) -> list[tuple[int, Stage]]:
    """Gives the stages to sbatch: the number of each one's job. `options` come after the site's.

    Raises:
        TrainingError: sbatch refused one; those before it are in the queue.
    """
    environment = {**os.environ, "SHOAL_HOME": str(home), "SHOAL_SITE": str(site.file)}
    jobs: list[tuple[int, Stage]] = []
    for stage in stages:
        if jobs:
            options = [
                *options_without_dependency(options),
                f"--dependency=afterok:{jobs[-1][0]}",
                "--kill-on-invalid-dep=yes",
            ]
        command = sbatch_command(stage, site, home, options)
        job = int(call(*command, environment=environment).partition(";")[0])
        jobs.append((job, stage))
        add_event(stage.run, Event(job, 0, int(time.time()), "submitted", shlex.join(stage.words)))
    return jobs


def sbatch_command(stage: Stage, site: Site, home: Path, options: Sequence[str]) -> list[str]:
    """The whole command line of a stage."""
    script = [str(home / SCRIPT), *stage.words]
    return ["sbatch", "--parsable", *site.options, *options, f"--comment={stage.run}", *script]


def options_without_dependency(options: Sequence[str]) -> list[str]:
    """A later stage waits for the stage before it alone."""
    return [one for one in options if not one.startswith(("--dependency", "--kill-on-invalid-dep"))]


def resumed(stage: Stage) -> bool:
    """Whether the run exists, so that the job goes on with it."""
    return (stage.run / SAVED).is_file()


def absolute_preset(stage: Stage) -> Stage:
    """The same with the path of its YAML file made absolute."""
    own = stage.preset.endswith(".yaml") or "/" in stage.preset
    return replace(stage, preset=str(Path(stage.preset).absolute())) if own else stage
