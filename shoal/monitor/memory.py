"""Memory: the peak in each step's metrics, and the profile that samples this process and its children."""

from __future__ import annotations

import csv
import json
import resource
import sys
import tracemalloc
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from logging import getLogger
from pathlib import Path
from threading import Event, Lock, Thread
from time import time
from typing import Any

import psutil
import torch

from shoal.config.nodes.run import MemoryProfileConfig
from shoal.files import write_atomically

logger = getLogger(__name__)

GIB = 2**30
MIB = 2**20
CSV_FIELDS = ("time", "elapsed", "step", "phase", "mark", "main_mib", "children_mib", "total_mib", "children")


def step_memory() -> dict[str, float]:
    """On CUDA `memory/cuda_peak_gib`: the most that tensors held on one device since the last call. Elsewhere
    `memory/rss_peak_gib`: the largest resident size of this process since it began."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        devices = range(torch.cuda.device_count())
        peak = max(torch.cuda.max_memory_allocated(device) for device in devices)
        for device in devices:
            torch.cuda.reset_peak_memory_stats(device)
        return {"memory/cuda_peak_gib": peak / GIB}
    # ru_maxrss is in bytes on macOS and in KiB elsewhere.
    unit = 1 if sys.platform == "darwin" else 1024
    return {"memory/rss_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB}


@dataclass
class ProcessMemory:
    """The resident size of one process, in MiB."""

    pid: int
    name: str
    mib: float


def children_memory(process: psutil.Process) -> list[ProcessMemory]:
    """All descendants, the largest first. One that ends while it is looked at is left out."""
    children = []
    for child in process.children(recursive=True):
        try:
            with child.oneshot():
                name = _readable_name(child)
                children.append(ProcessMemory(child.pid, name, child.memory_info().rss / MIB))
        except psutil.Error:
            continue
    return sorted(children, key=lambda child: -child.mib)


def _readable_name(process: psutil.Process) -> str:
    """Python processes are told apart by what they run: the script, the module or the worker's title."""
    arguments = process.cmdline()
    if len(arguments) < 2:
        return process.name()
    return " ".join([Path(arguments[0]).name, *arguments[1:]])[:100]


class MemoryProfile:
    """A thread that writes memory_profile/memory_samples.{csv,jsonl}; `stop` adds memory_summary.{json,md}.

    Sizes are resident set sizes in MiB; memory that processes share is counted in each of them. After a resume the
    samples are appended, and the summary is of the last start. `step` and `phase` are what the run is at; its monitor
    sets them, and every sample carries them.
    """

    def __init__(self, cfg: MemoryProfileConfig, run_dir: Path) -> None:
        self.cfg = cfg
        self.folder = run_dir / "memory_profile"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.process = psutil.Process()
        self.started = time()
        self.step = 0
        self.phase = "start"
        self.samples = 0
        self.peaks: dict[str, dict[str, Any]] = {}
        self.child_peaks: dict[int, ProcessMemory] = {}
        self.phase_peaks: dict[str, float] = {}
        self._lock = Lock()
        self._stop = Event()
        is_new = not (self.folder / "memory_samples.csv").exists()
        self._csv_file = (self.folder / "memory_samples.csv").open("a", encoding="utf-8", newline="")
        self._jsonl = (self.folder / "memory_samples.jsonl").open("a", encoding="utf-8")
        self._csv = csv.writer(self._csv_file)
        if is_new:
            self._csv.writerow(CSV_FIELDS)
        if cfg.tracemalloc:
            tracemalloc.start()
        self._thread = Thread(target=self._run, name="memory-profile", daemon=True)
        self._thread.start()

    def mark(self, name: str) -> None:
        """A sample now, under this name, where the configuration asks for marks in this step."""
        if self.cfg.mark_steps and (self.step - 1) % self.cfg.step_interval == 0:
            self._sample(name)

    def stop(self) -> dict[str, Any]:
        """A last sample (`end`), then the summary, which is also returned."""
        self._stop.set()
        self._thread.join()
        self._sample("end")
        self._csv_file.close()
        self._jsonl.close()
        summary = self.summary()
        if self.cfg.tracemalloc:
            tracemalloc.stop()
        write_atomically(self.folder / "memory_summary.json", json.dumps(summary, indent=2) + "\n")
        write_atomically(self.folder / "memory_summary.md", summary_markdown(summary))
        return summary

    def summary(self) -> dict[str, Any]:
        """Peaks with their moments, the largest total of each phase, the largest processes, Python's own top lines."""
        top = sorted(self.child_peaks.values(), key=lambda child: -child.mib)[: self.cfg.top_n_children]
        return {
            "samples": self.samples,
            "seconds": time() - self.started,
            "peaks": self.peaks,
            "peak_total_by_phase_mib": self.phase_peaks,
            "top_children": [asdict(child) for child in top],
            "top_consumers": self._top_consumers(top),
            "tracemalloc_top_lines": list(_top_lines()) if self.cfg.tracemalloc else [],
        }

    def _top_consumers(self, children: Iterable[ProcessMemory]) -> list[dict[str, Any]]:
        main = {"name": "main process", "pid": self.process.pid, "mib": self.peaks["main"]["mib"]}
        rows = [main, *({"name": child.name, "pid": child.pid, "mib": child.mib} for child in children)]
        return sorted(rows, key=lambda row: -row["mib"])

    def _run(self) -> None:
        while not self._stop.wait(self.cfg.interval):
            self._sample("")

    def _sample(self, mark: str) -> None:
        # The thread and the training loop both come here.
        with self._lock:
            now = time()
            main = self.process.memory_info().rss / MIB
            children = children_memory(self.process)
            in_children = sum(child.mib for child in children)
            sizes = {"main": main, "children": in_children, "total": main + in_children}
            for name, mib in sizes.items():
                if name not in self.peaks or mib > self.peaks[name]["mib"]:
                    moment = {"elapsed": now - self.started, "step": self.step, "phase": self.phase, "mark": mark}
                    self.peaks[name] = {"mib": mib, **moment}
            for child in children:
                known = self.child_peaks.get(child.pid)
                if known is None or child.mib > known.mib:
                    self.child_peaks[child.pid] = child
            self.phase_peaks[self.phase] = max(self.phase_peaks.get(self.phase, 0.0), sizes["total"])
            self.samples += 1
            self._write(now, mark, sizes, children)

    def _write(self, now: float, mark: str, sizes: dict[str, float], children: list[ProcessMemory]) -> None:
        elapsed = now - self.started
        rounded = [f"{mib:.1f}" for mib in sizes.values()]
        self._csv.writerow([f"{now:.3f}", f"{elapsed:.3f}", self.step, self.phase, mark, *rounded, len(children)])
        sample: dict[str, Any] = {"time": now, "elapsed": elapsed, "step": self.step, "phase": self.phase, "mark": mark}
        sample |= {f"{name}_mib": mib for name, mib in sizes.items()}
        sample["top_children"] = [asdict(child) for child in children[: self.cfg.top_n_children]]
        if self.cfg.tracemalloc:
            current, peak = tracemalloc.get_traced_memory()
            sample |= {"traced_mib": current / MIB, "traced_peak_mib": peak / MIB}
        self._jsonl.write(json.dumps(sample) + "\n")
        self._csv_file.flush()
        self._jsonl.flush()


def _top_lines(count: int = 15) -> Iterable[dict[str, Any]]:
    for line in tracemalloc.take_snapshot().statistics("lineno")[:count]:
        frame = line.traceback[0]
        yield {"file": frame.filename, "line": frame.lineno, "mib": line.size / MIB, "blocks": line.count}


def summary_markdown(summary: dict[str, Any]) -> str:
    """The summary for people."""
    lines = [
        "# Memory of the run",
        "",
        f"{summary['samples']} samples in {summary['seconds']:.0f} s. Resident sizes in MiB; memory shared between "
        "processes is counted in each.",
        "",
        "| what | peak | after | step | phase |",
        "|---|---|---|---|---|",
    ]
    for name, peak in summary["peaks"].items():
        lines.append(f"| {name} | {peak['mib']:.0f} | {peak['elapsed']:.1f} s | {peak['step']} | {peak['phase']} |")
    lines += ["", "## Largest consumers", "", "| process | pid | peak |", "|---|---|---|"]
    for row in summary["top_consumers"]:
        name = " ".join(row["name"].split()).replace("|", "\\|").replace("`", "'")
        lines.append(f"| `{name}` | {row['pid']} | {row['mib']:.0f} |")
    lines += ["", "## Highest total by phase", "", "| phase | peak |", "|---|---|"]
    lines += [f"| {phase} | {mib:.0f} |" for phase, mib in summary["peak_total_by_phase_mib"].items()]
    if summary["tracemalloc_top_lines"]:
        lines += ["", "## Python allocations at the end", "", "| line | MiB | blocks |", "|---|---|---|"]
        for row in summary["tracemalloc_top_lines"]:
            lines.append(f"| {row['file']}:{row['line']} | {row['mib']:.2f} | {row['blocks']} |")
    return "\n".join(lines) + "\n"
