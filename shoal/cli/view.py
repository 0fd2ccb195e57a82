"""`shoal view`: its flags."""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path
from typing import Any

DEFAULT_FOLDERS = ("outputs", "multirun")


def add_view(verbs: Any) -> None:
    """Adds `shoal view` to the command line."""
    text = "Look at runs in a browser: curves, groups side by side, completions, evaluations (docs/view.md)."
    view: ArgumentParser = verbs.add_parser("view", help=text, description=text)
    view.set_defaults(run=run_view, overrides=[])
    view.add_argument(
        "paths",
        nargs="*",
        type=Path,
        metavar="RUN",
        help="run folders, folders of them, or JSONL files of completions (default: outputs and multirun)",
    )
    view.add_argument("--host", default="127.0.0.1", help="a public address needs a token, which is printed")
    view.add_argument("--port", type=int, help="default: the first free one from 7600 on; 0: any")
    view.add_argument("--export", type=Path, metavar="FILE", help="write one HTML file with the run instead")
    view.add_argument(
        "--group",
        action="append",
        default=[],
        type=_place,
        metavar="STEP/GROUP",
        help="a group for the exported file, as the page numbers it; can be given again",
    )
    view.add_argument(
        "--groups",
        type=int,
        default=40,
        metavar="N",
        help="groups in the exported file, the most telling (default: 40)",
    )
    view.add_argument("--socket", type=int, help=SUPPRESS)  # from a run: one that listens already
    view.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))


def _place(text: str) -> tuple[int, int]:
    step, slash, group = text.partition("/")
    if not (slash and step.isdecimal() and group.isdecimal()):
        raise ArgumentTypeError(f"{text} is no STEP/GROUP, such as 12/5")
    return int(step), int(group)


def run_view(options: Namespace) -> int:
    """`shoal view`: serves until Ctrl-C or SIGTERM, or writes a file."""
    paths = options.paths or [path for path in map(Path, DEFAULT_FOLDERS) if path.is_dir()] or [Path()]
    if options.export is not None:
        from shoal.view.export import export  # noqa: PLC0415 imports FastAPI, which --help must not wait for

        return export(paths, options.export, options.groups, options.group)
    from shoal.view.serve import serve_view  # noqa: PLC0415 the same

    return serve_view(paths, options.host, options.port, options.socket)
