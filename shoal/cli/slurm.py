"""`shoal slurm`: its flags."""

from __future__ import annotations

import os
import shlex
import sys
from argparse import ArgumentParser, Namespace
from datetime import datetime
from pathlib import Path
from typing import Any

from shoal.slurm.jobs import cancel, find, show_log, status_lines
from shoal.slurm.submit import absolute_preset, make_stages, read_site, repository, resumed, sbatch_command, submit

DEFAULT_SITE = "slurm/site/generic.sh"


def add_slurm(verbs: Any) -> None:
    """Adds `shoal slurm submit|status|logs|cancel` to the command line."""
    whats = verbs.add_parser("slurm", help="Run on a SLURM cluster (docs/slurm.md).").add_subparsers(
        required=True, metavar="WHAT"
    )
    add_submit(whats)
    status = _of_jobs(whats, "status", run_status, "State, nodes and attempts of jobs.")
    status.add_argument("jobs", nargs="+", metavar="JOB|RUN", help="number of a job, or a run folder")
    logs = _of_jobs(whats, "logs", run_logs, "Print the log of a job.")
    logs.add_argument("job", metavar="JOB|RUN", help="number of a job, or a run folder")
    logs.add_argument("--follow", action="store_true", help="go on until the job has ended")
    logs.add_argument("--attempt", type=int, metavar="N", help="one attempt's (default: all of them)")
    logs.add_argument("--part", metavar="NAME", help="driver, probe, ring, nodes, workers or ray-NODE, of one attempt")
    end = _of_jobs(whats, "cancel", run_cancel, "End jobs; those that run save first.")
    end.add_argument("jobs", nargs="+", metavar="JOB|RUN", help="number of a job, or a run folder; never all of a user")
    end.add_argument("--now", action="store_true", help="do not wait for a checkpoint")


def add_submit(whats: Any) -> None:
    """Its flags."""
    text = "Queue a run, or a pipeline of runs that each start from the model of the one before."
    send: ArgumentParser = whats.add_parser("submit", help=text, description=text, allow_abbrev=False)
    send.set_defaults(run=run_submit, overrides=[])
    send.add_argument("preset", metavar="PRESET", help="name of a preset, or a YAML file")
    send.add_argument("words", nargs="*", metavar="KEY=VALUE", help="overrides")
    send.add_argument(
        "--then",
        nargs="+",
        action="append",
        default=[],
        metavar=("PRESET", "KEY=VALUE"),
        help="the next stage: it starts when the one before has finished, from its model",
    )
    send.add_argument("--nodes", type=int, metavar="N", help="nodes (default: the site's, or 1)")
    send.add_argument(
        "--time", metavar="LIMIT", help="time limit, such as 4:00:00; the run saves before it and goes on"
    )
    send.add_argument("--sbatch", action="append", default=[], metavar="OPTIONS", help="more options of sbatch, quoted")
    send.add_argument("--site", type=Path, metavar="FILE", help=f"default: $SHOAL_SITE, or {DEFAULT_SITE}")
    send.add_argument("--dry-run", action="store_true", help="print the sbatch commands alone")
    send.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))


def _of_jobs(whats: Any, name: str, run: Any, text: str) -> ArgumentParser:
    parser: ArgumentParser = whats.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run, overrides=[])
    parser.add_argument(
        "--root", type=Path, metavar="DIR", help="where runs of jobs that have ended are looked for (default: outputs)"
    )
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    return parser


def run_submit(options: Namespace) -> int:
    """`shoal slurm submit`: prints the jobs' numbers."""
    home = repository()
    site = read_site(options.site or Path(os.environ.get("SHOAL_SITE") or home / DEFAULT_SITE), home)
    # Words that follow the options, such as those after --nodes 2, are overrides of the first stage.
    texts = [[options.preset, *options.words, *options.overrides], *options.then]
    stages = [absolute_preset(stage) for stage in make_stages(texts, site.run_root, datetime.now())]
    extra = [word for text in options.sbatch for word in shlex.split(text)]
    extra += [f"--nodes={options.nodes}"] if options.nodes else []
    extra += [f"--time={options.time}"] if options.time else []
    if options.dry_run:
        for stage in stages:
            _say(shlex.join(sbatch_command(stage, site, home, extra)))
        return 0
    before: int | None = None
    for job, stage in submit(stages, site, home, extra):
        after = f", after job {before}, from its model" if before else ""
        _say(f"job {job}: {'goes on with ' if resumed(stage) else ''}{os.path.relpath(stage.run)}{after}")
        before = job
    _say(f"shoal slurm logs {before} --follow" if len(stages) == 1 else f"shoal slurm status {before}")
    return 0


def run_status(options: Namespace) -> int:
    """`shoal slurm status`."""
    for where in options.jobs:
        for line in status_lines(find(where, _root(options))):
            _say(line)
    return 0


def run_logs(options: Namespace) -> int:
    """`shoal slurm logs`: until the end of the log, or of the job."""
    show_log(find(options.job, _root(options)), options.attempt, options.part, options.follow)
    return 0


def run_cancel(options: Namespace) -> int:
    """`shoal slurm cancel`: each job by its number."""
    for found in [find(where, _root(options)) for where in options.jobs]:
        _say(cancel(found, options.now))
    return 0


def _root(options: Namespace) -> Path:
    return (options.root or Path(os.environ.get("SHOAL_RUN_ROOT") or "outputs")).absolute()


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
