"""Where metrics go: metrics.jsonl, TensorBoard, Weights & Biases. A new one is one class, named in WRITERS."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from shoal.config import ShoalConfig
from shoal.errors import ConfigError
from shoal.monitor.rows import METRICS_FILE, keep_first_rows, to_line


@dataclass(frozen=True)
class WriterContext:
    """What a writer needs to begin, or to go on after a resume.

    `step` is the last step whose rows are kept (0 in a new run), `rows` the number of rows kept, `run_id` the id
    under which trackers know the run, the same after a resume.
    """

    cfg: ShoalConfig
    run_dir: Path
    step: int
    rows: int
    run_id: str


class Writer(Protocol):
    """Takes the rows of training steps and of evaluations (whose keys begin with `eval/`)."""

    @classmethod
    def open(cls, context: WriterContext) -> Writer | None:
        """The writer, or None where the configuration does not ask for it. What was written after `context.step` is
        dropped, or superseded where the tracker cannot drop.

        Raises:
            ConfigError: the tracker's package is missing or it refuses the run.
        """

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One row."""

    def flush(self) -> None:
        """Called with every checkpoint: what was written before must survive the death of the process."""

    def close(self, failed: bool) -> None:
        """Called once; `failed` where the run did not come to a planned end."""


class JsonlWriter:
    """metrics.jsonl, flushed row by row."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a", encoding="utf-8")

    @classmethod
    def open(cls, context: WriterContext) -> JsonlWriter:
        path = context.run_dir / METRICS_FILE
        keep_first_rows(path, context.rows)
        return cls(path)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self.file.write(to_line({"step": step, **metrics}))
        self.file.flush()

    def flush(self) -> None:
        self.file.flush()

    def close(self, failed: bool) -> None:
        self.file.close()


class TensorBoardWriter:
    """Events in tensorboard/. After a resume, TensorBoard drops later steps at `purge_step`."""

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        # Importing it takes a second, which runs without it need not wait.
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

        self.writer = SummaryWriter(str(folder), purge_step=purge_step)

    @classmethod
    def open(cls, context: WriterContext) -> TensorBoardWriter | None:
        if not context.cfg.monitor.tensorboard:
            return None
        folder = context.run_dir / "tensorboard"
        return cls(folder, context.step + 1 if folder.exists() else None)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def flush(self) -> None:
        self.writer.flush()

    def close(self, failed: bool) -> None:
        self.writer.close()


class WandbWriter:
    """A W&B run with `step` as the axis of every metric, so that steps repeated after a resume fall on themselves."""

    def __init__(self, context: WriterContext) -> None:
        import wandb  # noqa: PLC0415 - an optional package

        options = context.cfg.monitor.wandb
        try:
            self.run = wandb.init(
                project=options.project,
                entity=options.entity,
                group=options.group,
                name=options.name or context.run_dir.name,
                mode="offline" if options.mode == "offline" else "online",
                id=context.run_id,
                resume="allow",
                dir=str(context.run_dir),
                config=asdict(context.cfg),
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.errors.Error as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"monitor.wandb: {reason} (monitor.wandb.mode=offline writes to the run folder, for `wandb sync`)"
            ) from error
        self.run.define_metric("step", hidden=True)
        self.run.define_metric("*", step_metric="step")

    @classmethod
    def open(cls, context: WriterContext) -> WandbWriter | None:
        return cls(context) if context.cfg.monitor.wandb.enabled else None

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self.run.log({"step": step, **metrics})

    def flush(self) -> None:
        """Nothing to do: another process, which outlives this one, does the writing."""

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=1 if failed else 0)


WRITERS: tuple[type[Writer], ...] = (JsonlWriter, TensorBoardWriter, WandbWriter)


def check_packages(cfg: ShoalConfig) -> None:
    """Raises ConfigError at start-up, not at the first row, where a wanted tracker's package is missing."""
    if not cfg.monitor.wandb.enabled:
        return
    spec = find_spec("wandb")
    # A folder `wandb/` of earlier runs in the working directory counts as a package without an origin.
    if spec is None or spec.origin is None:
        raise ConfigError(
            "monitor.wandb.enabled=true needs the package wandb: pip install 'shoal-rl[wandb]', or set it to false"
        )


def open_writers(context: WriterContext) -> list[Writer]:
    """Every writer that the configuration asks for."""
    return [writer for kind in WRITERS if (writer := kind.open(context)) is not None]
