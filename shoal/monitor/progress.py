"""What a person sees while a run runs: a live display on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from logging import getLogger
from time import monotonic
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from shoal.monitor.log_file import said
from shoal.types import Completion

logger = getLogger(__name__)


class Advance(Protocol):
    """Tells the display that this many more are done."""

    def __call__(self, count: int = 1) -> None: ...


SPARKS = "▁▂▃▄▅▆▇█"
RECENT_STEPS = 20

# Shown where present, in this order: label, metric, format.
FIELDS = (
    ("reward", "reward/mean", ".3f"),
    ("length", "length/mean", ".1f"),
    ("cut off", "stop/length", ".0%"),
    ("no signal", "groups/zero_variance", ".0%"),
    ("KL", "kl_ref/k3", ".2g"),
    ("sampler KL", "sampler/kl_k3", ".2g"),
    ("tokens/s", "tokens_per_second/step", ",.0f"),
)


def sparkline(values: Sequence[float], width: int = 32) -> str:
    """`values` as at most `width` characters, each the mean of an equal share, scaled between the smallest and the
    largest of them."""
    if not values:
        return ""
    width = min(width, len(values))
    edges = [index * len(values) // width for index in range(width + 1)]
    means = [sum(values[start:end]) / (end - start) for start, end in pairwise(edges)]
    low, high = min(means), max(means)
    top = len(SPARKS) - 1
    return "".join(SPARKS[round((mean - low) / (high - low) * top) if high > low else top // 2] for mean in means)


def duration(seconds: float) -> str:
    """Seconds as 48s, 3m05s or 2h07m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class ProgressDisplay:
    """Steps, headline numbers and other long phases, on stderr.

    `mode` is monitor.progress: `auto` is live on a terminal and lines elsewhere. In lines, at most one line is
    written in `line_every` seconds, besides those of the first and the last step.
    """

    def __init__(
        self,
        mode: str,
        total_steps: int,
        *,
        console: Console | None = None,
        line_every: float = 2.0,
        sampling_every: float = 10.0,
    ) -> None:
        self.console = console or Console(stderr=True)
        self.mode = ("live" if self.console.is_terminal else "lines") if mode == "auto" else mode
        self.total_steps = total_steps
        self.line_every = line_every
        self.sampling_every = sampling_every
        self._said_sampling = 0.0
        self.rewards: list[float] = []
        self.latest: Mapping[str, float] = {}
        self.accuracy: float | None = None
        self.current_phase = ""
        self.step_number = 0
        self._step_times: deque[float] = deque(maxlen=RECENT_STEPS + 1)
        self._last_line = float("-inf")
        self._bars = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
        )
        self._steps_bar: TaskID | None = None
        self._live: Live | None = None

    def resume(self, step: int, rewards: Sequence[float], accuracy: float | None) -> None:
        """Shows what an earlier start of the run had reached."""
        self.step_number, self.rewards, self.accuracy = step, list(rewards), accuracy

    def begin_steps(self) -> None:
        """Called before the first step: the time left is counted from here."""
        if not self._step_times:
            self._step_times.append(monotonic())
        if self.mode == "live" and self._steps_bar is None:
            self._show()
            self._steps_bar = self._bars.add_task(
                "training", total=self.total_steps, completed=self.step_number, note=""
            )

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """A step is done."""
        self.begin_steps()
        self._step_times.append(monotonic())
        self.step_number, self.latest = step, metrics
        if "reward/mean" in metrics:
            self.rewards.append(metrics["reward/mean"])
        left = self.seconds_left()
        line = f"step {step}/{self.total_steps}  {self._headline(metrics)}  left {duration(left)}"
        is_due = step in (1, self.total_steps) or self._line_is_due()
        if self.mode == "live" and self._steps_bar is not None:
            self._bars.update(self._steps_bar, completed=step, note=f"{duration(left)} left")
            self._refresh()
        if self.mode == "lines" and is_due:
            self._line(line)
        elif is_due:
            self._last_line = monotonic()
            said.info(line)

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """An evaluation is done."""
        self.accuracy = metrics.get("accuracy", self.accuracy)
        numbers = "  ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        self.message(f"evaluation after step {step}: {numbers}")

    def phase(self, name: str) -> None:
        """The step has come to this phase."""
        self.current_phase = name
        if self._live is not None:
            self._live.update(self._render())

    def sampling(self, what: str, total: int) -> Callable[[Completion], None]:
        """What to call with each completion as it comes: how many of `total` there are, and their tokens, are shown.

        Lines are written where nothing else was for some seconds, so that short rollouts show nothing.
        """
        done = tokens = 0
        started = self._said_sampling = monotonic()

        def finished(completion: Completion) -> None:
            nonlocal done, tokens
            done += 1
            tokens += completion.num_sampled
            text = f"{what}: {done} of {total} completions, {tokens:,} tokens"
            if self.mode == "live":
                self.current_phase = text
                self._show()
                self._refresh()
            elif self.mode == "lines" and monotonic() - self._said_sampling >= self.sampling_every:
                self._said_sampling = monotonic()
                self._line(f"{text}, {duration(monotonic() - started)}")

        return finished

    def message(self, text: str) -> None:
        """A line for people; to the log where the display is off. The run's log file has it in any case."""
        if self.mode == "off":
            logger.info(text)
        else:
            said.info(text)
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        """Progress of another long phase: `with display.task("warm start", 300) as advance: advance(1)`."""
        done = 0
        started = monotonic()
        bar: TaskID | None = None
        if self.mode == "live":
            self._show()
            bar = self._bars.add_task(description, total=total, note="")

        def advance(count: int = 1) -> None:
            nonlocal done
            done += count
            if bar is not None:
                self._bars.advance(bar, count)
            elif self.mode == "lines" and self._line_is_due():
                self._line(f"{description} {done}/{total}  {duration(monotonic() - started)}")

        try:
            yield advance
        finally:
            if bar is not None:
                self._bars.remove_task(bar)
                self._refresh()
            if self.mode != "off" and done:
                self.message(f"{description}: {done} of {total} in {duration(monotonic() - started)}")

    def seconds_left(self) -> float:
        """Steps left times the mean time of the last 20 steps of this start, evaluations between them included."""
        if len(self._step_times) < 2:
            return 0.0
        per_step = (self._step_times[-1] - self._step_times[0]) / (len(self._step_times) - 1)
        return per_step * max(self.total_steps - self.step_number, 0)

    def close(self) -> None:
        """Leaves the last state of the display on the screen."""
        if self._live is not None:
            self.current_phase = ""
            self._live.update(self._render())
            self._live.stop()
            self._live = None

    def _headline(self, metrics: Mapping[str, float]) -> str:
        parts = [f"{label} {metrics[name]:{form}}" for label, name, form in FIELDS if name in metrics]
        return "  ".join(parts)

    def _line_is_due(self) -> bool:
        return monotonic() - self._last_line >= self.line_every

    def _line(self, text: str) -> None:
        self._last_line = monotonic()
        self.message(text)

    def _show(self) -> None:
        if self._live is None:
            self._live = Live(self._render(), console=self.console, refresh_per_second=2)
            self._live.start()

    def _refresh(self) -> None:
        if self._live is not None:
            self._live.update(self._render())

    def _render(self) -> RenderableType:
        if not self.latest and not self.rewards:
            return Group(self._bars, Text(self.current_phase, style="dim"))
        numbers = [
            f"[dim]{label}[/dim] {self.latest[name]:{form}}" for label, name, form in FIELDS if name in self.latest
        ]
        if self.accuracy is not None:
            numbers.append(f"[dim]accuracy[/dim] {self.accuracy:.3f}")
        rewards = f"[cyan]{sparkline(self.rewards)}[/cyan]  [dim]{self.current_phase}[/dim]"
        lines = ["  ".join(numbers), rewards]
        return Group(self._bars, *(Text.from_markup(line, overflow="ellipsis") for line in lines))
