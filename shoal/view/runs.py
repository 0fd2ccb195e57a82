"""Which runs there are: run folders, sweeps and files of samples under the paths that were given."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock
from time import time
from typing import Any

from shoal.errors import DataError
from shoal.monitor.notes import ERROR, NOTES_FILE
from shoal.monitor.rows import METRICS_FILE
from shoal.monitor.samples import EVALUATIONS, SAMPLES
from shoal.monitor.summary import SUMMARY_FILE
from shoal.run_folder import SAVED
from shoal.view.find import Finder
from shoal.view.groups import RUBRIC_FILE
from shoal.view.index import SampleIndex
from shoal.view.lines import LONGEST_LINE, Follower, part_of, read_line, read_object
from shoal.view.metrics import Metrics

MARKS = (METRICS_FILE, SAMPLES, EVALUATIONS, str(SAVED))
NEVER_ENTERED = {
    SAMPLES,
    EVALUATIONS,
    "checkpoints",
    "model",
    "best",
    "tensorboard",
    "groups",
    "journal",
    "logs",
    "wandb",
}
DEEPEST = 6
LIVELY_SECONDS = 120.0
"""A run without a summary whose metrics are younger than this counts as running."""
FOUND_FOR_SECONDS = 3.0


class Run:
    """One run folder, or one file of samples; what has been read of it is kept and followed."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        self.metrics = Metrics(path)
        self.notes: list[dict[str, Any]] = []
        self._notes_file = Follower(path, NOTES_FILE)
        self._notes_generation = 0
        self._index: SampleIndex | None = None
        self._finder: Finder | None = None
        self._lock = Lock()

    @property
    def index(self) -> SampleIndex:
        """The index of its samples, opened on first use."""
        with self._lock:
            if self._index is None:
                self._index = SampleIndex(self.path)
            return self._index

    @property
    def finder(self) -> Finder:
        """What looks for completions."""
        index = self.index
        with self._lock:
            if self._finder is None:
                self._finder = Finder(index)
            return self._finder

    def file(self, name: str) -> Path:
        """A file of the run folder."""
        return part_of(self.path, name)

    def read_notes(self) -> list[dict[str, Any]]:
        """Notes and warnings in words, oldest first."""
        with self._lock:
            for row in self._notes_file.read():
                if self._notes_file.generation != self._notes_generation:
                    self._notes_generation, self.notes = self._notes_file.generation, []
                if isinstance(row.get("text"), str):
                    self.notes.append({name: row.get(name) for name in ("step", "time", "level", "text")})
            return self.notes

    def status(self) -> str:
        """`running`, `finished`, `stopped`, `failed`, `ended` (no summary, and no sign of life), or `file`."""
        if self.path.is_file():
            return "file"
        metrics, summary = _changed(self.file(METRICS_FILE)), _changed(self.file(SUMMARY_FILE))
        if summary and summary >= metrics:
            return str(read_object(self.file(SUMMARY_FILE)).get("status", "finished"))
        notes = self.read_notes()
        if notes and notes[-1]["level"] == ERROR:
            return "failed"
        newest = max(metrics, _changed(self.file(NOTES_FILE)), _changed(self.file(str(SAVED))))
        if newest and time() - newest < LIVELY_SECONDS:
            return "running"
        return "ended" if metrics or (self.path / SAVED).exists() else "samples"

    def pages(self) -> list[str]:
        """The pages that have something to show."""
        has = []
        if self.metrics.columns:
            has.append("run")
        if self.path.is_file() or (self.path / SAMPLES).is_dir():
            has.append("steps")
        if (self.path / EVALUATIONS).is_dir():
            has.append("evaluations")
        if self.file(RUBRIC_FILE).is_file():
            has.append("rubrics")
        if self.metrics.columns:
            has.append("waiting")
        return has

    def head(self) -> dict[str, Any]:
        """What a list of runs shows of it."""
        self.metrics.update()
        metrics = self.metrics
        reward = metrics.columns.get("reward/mean")
        return {
            "name": self.name,
            "path": shown_path(self.path),
            "status": self.status(),
            "pages": self.pages(),
            "step": metrics.last_step(),
            "reward": metrics.last("reward/mean"),
            "accuracy": metrics.last("eval/accuracy"),
            "seconds": metrics.last("seconds/total"),
            "spark": thinned(list(reward.values), 60) if reward else [],
            "changed": _changed(self.path if self.path.is_file() else self.file(METRICS_FILE)) or None,
            "parent": self.name.rpartition("/")[0],
        }


class Runs:
    """All runs under the given paths, found again every few seconds.

    Raises:
        DataError: a path does not exist.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        for path in paths:
            if not path.exists():
                raise DataError(f"{path}: no such file or folder; shoal view takes run folders, or folders of them")
        self.roots = [path.resolve() for path in paths]
        self.known: dict[Path, Run] = {}
        self.found_at = 0.0
        self.lock = Lock()

    def all(self) -> list[Run]:
        """Every run, the newest first."""
        with self.lock:
            if time() - self.found_at > FOUND_FOR_SECONDS:
                self._find()
                self.found_at = time()
            return list(self.known.values())

    def named(self, name: str) -> Run:
        """The run of that name. Names are looked up among the runs that were found, so no name leads elsewhere.

        Raises:
            DataError: there is none.
        """
        for run in self.all():
            if run.name == name:
                return run
        raise DataError(f"no run {name!r} here")

    def _find(self) -> None:
        found: dict[Path, str] = {}
        for root in self.roots:
            prefix = f"{root.name}/" if len(self.roots) > 1 else ""
            for path in runs_under(root):
                inner = path.relative_to(root).as_posix()
                name = root.name if inner == "." else prefix + inner
                while name in found.values():
                    name += "'"
                found.setdefault(path, name.encode("utf-8", "replace").decode())
        for path, name in found.items():
            if path not in self.known:
                self.known[path] = Run(name, path)
        order = sorted(found, key=lambda path: (-_changed(path), found[path]))
        self.known = {path: self.known[path] for path in order}


def runs_under(root: Path, depth: int = 0) -> Iterator[Path]:
    """Run folders in a folder, itself included, and files of completions beside them; or the file itself."""
    if root.is_file() or _is_run(root):
        yield root
        return
    if depth >= DEEPEST:
        return
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".") and entry.name not in NEVER_ENTERED:
            yield from runs_under(Path(entry.path), depth + 1)
        elif entry.name.endswith(".jsonl") and entry.is_file(follow_symlinks=False) and _holds_completions(entry):
            yield Path(entry.path)


def shown_path(path: Path) -> str:
    """A path as it is typed in the folder where `shoal view` was started."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def thinned(values: list[float], count: int) -> list[float | None]:
    """Means over `count` equal shares of a list, or the list itself where it is short."""
    if len(values) <= count:
        return [value if value == value else None for value in values]
    means: list[float | None] = []
    for place in range(count):
        share = values[place * len(values) // count : (place + 1) * len(values) // count]
        known = [value for value in share if value == value]
        means.append(sum(known) / len(known) if known else None)
    return means


def _is_run(folder: Path) -> bool:
    return any((folder / mark).exists() for mark in MARKS)


def _holds_completions(file: os.DirEntry[str]) -> bool:
    """Whether a file begins as those of `shoal eval --save` and `shoal score` do."""
    try:
        with open(file.path, "rb") as content:
            row = read_line(content.readline(LONGEST_LINE)) or {}
    except OSError:
        return False
    return {"group", "text", "reward"} <= row.keys() or {"completion", "score"} <= row.keys()


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
