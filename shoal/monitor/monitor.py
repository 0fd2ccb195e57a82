"""The run's one address for everything that is measured: it hands on to the writers, the display and the files."""

from __future__ import annotations

import json
import secrets
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from logging import getLogger
from pathlib import Path
from time import monotonic, time
from typing import Any

from shoal.config import ShoalConfig
from shoal.monitor.memory import MemoryProfile, step_memory
from shoal.monitor.metrics import describe, step_metrics
from shoal.monitor.notes import ERROR, NOTE, WARNING, Notes
from shoal.monitor.progress import ProgressDisplay
from shoal.monitor.rows import read_rows
from shoal.monitor.samples import EVALUATIONS, Decode, LearnerLogprobs, SampleFiles
from shoal.monitor.warnings import Warnings
from shoal.monitor.writers import Writer, WriterContext, check_packages, open_writers
from shoal.types import Group

logger = getLogger(__name__)

RESUMES_FILE = "resumes.jsonl"

# Phases between steps: they neither begin a step nor count in `seconds/step`.
BETWEEN_STEPS = ("evaluate", "checkpoint")

# What seed-compatible memory marks are called.
MARKS = {"rollout": "after_rollout", "reward": "after_rewards", "train": "after_train"}

CURVE_EVERY_SECONDS = 60.0


class Monitor:
    """Metrics, samples, curve, display and memory profile of one run folder.

    Nothing is opened or cut before the first row, so that `load_state_dict` can come first. Where it does not come,
    rows that an earlier start left in the folder are dropped: that start had no checkpoint to go on from. Make it
    before the model, so that `seconds_total` holds the warm start too, and set `decode` when there is a tokenizer; or
    give `started`, the `time.monotonic()` at which the run began.

    Raises:
        ConfigError: the package of a wanted tracker is missing.
    """

    def __init__(
        self,
        cfg: ShoalConfig,
        run_dir: Path,
        *,
        total_steps: int,
        decode: Decode | None = None,
        started: float | None = None,
    ) -> None:
        check_packages(cfg)
        self.cfg = cfg
        self.run_dir = run_dir
        run_dir.mkdir(parents=True, exist_ok=True)
        self.progress = ProgressDisplay(cfg.monitor.progress, total_steps)
        self.decode = decode
        self.samples = SampleFiles(run_dir)
        self.warnings = Warnings()
        self.evaluations = SampleFiles(run_dir, EVALUATIONS)
        self.notes = Notes(run_dir, lambda: self.step + (self._step_started is not None))
        self.profile = MemoryProfile(cfg.memory_profile, run_dir) if cfg.memory_profile.enabled else None
        self.step = 0
        self._step_started: float | None = None
        self._rows = 0
        self._run_id = secrets.token_hex(4)
        self._seconds_before = 0.0
        self._started = monotonic() if started is None else started
        self._writers: list[Writer] | None = None
        self._phases: dict[str, float] = defaultdict(float)
        self._curve_drawn = monotonic()

    @property
    def seconds_total(self) -> float:
        """Wall time since the run began, over all its starts; work that a kill threw away does not count."""
        return self._seconds_before + monotonic() - self._started

    @property
    def resume_count(self) -> int:
        """How often this run folder was taken up again, counted in resumes.jsonl."""
        path = self.run_dir / RESUMES_FILE
        return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the block's wall time as `seconds/<name>` of the next row. Phases are not nested."""
        started = monotonic()
        if name not in BETWEEN_STEPS and self._step_started is None:
            self._begin_step(started)
        self.progress.phase(name)
        if self.profile is not None:
            self.profile.phase = name
        try:
            yield
        finally:
            self._phases[name] += monotonic() - started
            if self.profile is not None:
                if name in MARKS:
                    self.profile.mark(MARKS[name])
                self.profile.phase = "between phases"

    def writes_samples(self, step: int) -> bool:
        """Whether the completions of this step are written."""
        every = self.cfg.monitor.samples_every
        return bool(every and step % every == 0)

    def record(
        self,
        step: int,
        groups: Sequence[Group],
        metrics: Mapping[str, float],
        left_out: Mapping[int, str] | None = None,
        learner: LearnerLogprobs | None = None,
        passed_over: Sequence[Group] | None = None,
    ) -> dict[str, float]:
        """Writes the row of a step: `step_metrics`, then `metrics`, then times and memory. Returns the row.

        `groups` are trained on; `passed_over` were sampled for the step and are not.

        `seconds/step` is wall time from the first phase of the step to this call; evaluations and checkpoints since
        the row before stand in `seconds/evaluate` and `seconds/checkpoint` and are not part of it.
        `tokens_per_second/rollout` and `/step` are all sampled tokens, trained on or not, over `seconds/rollout` and
        `seconds/step`.
        `left_out` and `learner` go into the samples: see `sample_rows`.
        """
        self._open()
        row = step_metrics(groups, passed_over, version=step - 1) | dict(metrics) | step_memory()
        row |= self._times(row["count/sampled_tokens"])
        self._write(step, row)
        self.step = step
        if self.writes_samples(step):
            self.samples.write(step, groups, self.decode, left_out, learner)
        self.progress.step(step, row)
        sentence = describe(row)
        if sentence is not None:
            self.message(f"step {step}: {sentence}")
        for text in self.warnings.sentences(step, row):
            self.message(f"step {step}: {text}", WARNING)
        return row

    def evaluation(self, step: int, metrics: Mapping[str, float], groups: Sequence[Group] = ()) -> None:
        """Writes a row of its own with the keys under `eval/`, and the completions; redraws the curve once a minute."""
        self._open()
        row = {f"eval/{name}": value for name, value in metrics.items()}
        if "evaluate" in self._phases:
            row["seconds/evaluate"] = self._phases.pop("evaluate")
        self._write(step, row)
        if self.cfg.monitor.samples_every and groups:
            self.evaluations.write(step, groups, self.decode)
        self.progress.evaluation(step, metrics)
        if self.cfg.monitor.curve and monotonic() - self._curve_drawn > CURVE_EVERY_SECONDS:
            self._draw_curve()

    def message(self, text: str, level: str = NOTE) -> None:
        """A line for people, which notes.jsonl keeps."""
        self.progress.message(text)
        self.notes.write(text, level)

    def failure(self, text: str) -> None:
        """Keeps what ended the run."""
        self.notes.write(text, ERROR)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps. Everything written so far is flushed: the checkpoint vouches for it."""
        for writer in self._writers or []:
            writer.flush()
        return {"step": self.step, "rows": self._rows, "seconds": self.seconds_total, "run_id": self._run_id}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint, before anything is recorded: what was written after it is dropped."""
        self.step = state["step"]
        self._rows = state["rows"]
        self._seconds_before = state["seconds"]
        self._run_id = state["run_id"]
        self._count_resume()
        rows = read_rows(self.run_dir)[: self._rows]
        rewards = [row["reward/mean"] for row in rows if row.get("reward/mean") is not None]
        accuracies = [row["eval/accuracy"] for row in rows if "eval/accuracy" in row]
        self.progress.resume(self.step, rewards, accuracies[-1] if accuracies else None)

    def close(self, status: str) -> None:
        """Draws the curve, ends the profile and closes the writers; a second call does nothing.

        `status` is `finished`, `stopped` (by a signal, to be resumed) or `failed`; trackers show a failed run as such.
        """
        writers, profile = self._writers, self.profile
        self._writers = self.profile = None
        with ExitStack() as last_first:
            last_first.callback(self.notes.close)
            for writer in writers or []:
                last_first.callback(writer.close, failed=status == "failed")
            if writers is not None and self.cfg.monitor.curve:
                last_first.callback(self._draw_curve)
            if profile is not None:
                last_first.callback(profile.stop)
            last_first.callback(self.progress.close)

    def _open(self) -> None:
        if self._writers is not None:
            return
        if self._rows == 0 and read_rows(self.run_dir):
            self.message("rows of an earlier start, which left no checkpoint, are dropped from metrics.jsonl")
            self._count_resume()
        self.samples.drop_after(self.step)
        self.evaluations.drop_after(self.step)
        self._writers = open_writers(WriterContext(self.cfg, self.run_dir, self.step, self._rows, self._run_id))

    def _count_resume(self) -> None:
        with (self.run_dir / RESUMES_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": time(), "step": self.step}) + "\n")

    def _begin_step(self, now: float) -> None:
        self._step_started = now
        self.progress.begin_steps()
        if self.profile is not None:
            self.profile.step = self.step + 1
            self.profile.mark(f"step_{self.step + 1}_start")

    def _times(self, sampled_tokens: float) -> dict[str, float]:
        now = monotonic()
        times = {f"seconds/{name}": seconds for name, seconds in self._phases.items()}
        if self._step_started is not None:
            times["seconds/step"] = now - self._step_started
        times["seconds/total"] = self.seconds_total
        for name in ("rollout", "step"):
            if times.get(f"seconds/{name}", 0.0) > 0:
                times[f"tokens_per_second/{name}"] = sampled_tokens / times[f"seconds/{name}"]
        self._phases.clear()
        self._step_started = None
        return times

    def _write(self, step: int, row: Mapping[str, float]) -> None:
        for writer in self._writers or []:
            writer.write(step, row)
        self._rows += 1

    def _draw_curve(self) -> None:
        # Matplotlib takes most of a second to import; runs without a curve need not wait.
        from shoal.monitor.curve import draw_curve  # noqa: PLC0415

        draw_curve(self.run_dir)
        self._curve_drawn = monotonic()
