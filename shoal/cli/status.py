"""`shoal status`: its flags."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any


def add_status(verbs: Any) -> None:
    """Adds `shoal status` to the command line."""
    text = "What runs do now: step, who waits for whom, versions, engines, ranks and workers on their nodes."
    status: ArgumentParser = verbs.add_parser("status", help=text, description=text)
    status.set_defaults(run=run_status, overrides=[])
    status.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder")
    status.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))


def run_status(options: Namespace) -> int:
    """`shoal status`: prints some lines for each run."""
    from shoal.view.status import status_lines  # noqa: PLC0415 imports numpy, which --help must not wait for

    for folder in options.runs:
        for line in status_lines(folder):
            sys.stdout.write(line + "\n")
    return 0
