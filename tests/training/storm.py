"""Signals at random moments to the processes of one asynchronous run, and what must be true of it all the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from time import monotonic, sleep

import psutil
from small_runs import SMALL

from shoal.child_process import OWNER
from shoal.monitor.rows import read_rows
from shoal.training.recording import GroupRecording

ENGINE, WORKER, TRAINER = "shoal.engine_process", "shoal.rewards.workers.worker", "trainer"
KINDS = [(victim, one) for victim in (ENGINE, WORKER, TRAINER) for one in (signal.SIGKILL, signal.SIGSTOP)]
TIMEOUT = 10  # engine.timeout, and weight_sync.timeout
DEADLINE = 400.0  # for anything that is waited for: a start, or a hang that is noticed and mended
GONE_SECONDS = 20.0
TAIL = 6  # steps after the last moment
STOPPED = 130  # exit status of a run that was asked to stop
OVERRIDES = (
    *SMALL,
    "source=async",
    "source.max_staleness=3",
    "source.lead=2",
    "engine.processes=2",
    f"engine.timeout={TIMEOUT}",
    "engine.restarts=1000",
    f"weight_sync.timeout={TIMEOUT}",
    r"reward.verifiers={easy_rewards\:in_a_worker:1}",
    "optimizer.lr=1e-4",
    "reward.workers=2",
    "reward.timeout=3",
    "reward.max_missing=1",
    "data.shuffle=false",
    "run.steps=100000",
    "run.record_groups=true",
    "run.name=run",
    "checkpoint.every=3",
    "evaluation.at_start=false",
    "evaluation.every=25",
    "monitor.progress=off",
    "monitor.samples_every=0",
)


@dataclass(frozen=True)
class Moment:
    """Which process gets which signal, so many seconds after the run has got on."""

    victim: str
    signal: int
    after: float

    def __str__(self) -> str:
        return f"{signal.Signals(self.signal).name} of {self.victim} after {self.after:.2f} s"


def moments(seed: int, count: int) -> list[Moment]:
    """Each kind equally often, in a random order at random times."""
    random = Random(seed)
    kinds = [KINDS[number % len(KINDS)] for number in range(count)]
    random.shuffle(kinds)
    return [Moment(victim, one, random.uniform(0.0, 1.5)) for victim, one in kinds]


class Storm:
    """One run in a folder, started and resumed in processes of its own.

    Args:
        root: Where the run's folder is made.
        model: The policy's folder.
        overrides: Beside those of every storm.
        say: Is told what happens.
    """

    def __init__(self, root: Path, model: Path, *overrides: str, say: Callable[[str], object] = lambda line: None):
        self.folder = root / "run"
        self.first = [f"model.name={model}", f"run.root={root}", *OVERRIDES, *overrides]
        here = str(Path(__file__).parent)
        self.environment = {**os.environ, "PYTHONPATH": here, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.log = root / "trainer.log"
        self.say = say
        self.trainer: subprocess.Popen[bytes] | None = None
        self.random = Random(0)

    # The run.

    def start(self, *overrides: str) -> subprocess.Popen[bytes]:
        begun = (self.folder / ".hydra" / "config.yaml").exists()
        words = [f"resume={self.folder}"] if begun else self.first
        with self.log.open("ab") as log:
            self.trainer = subprocess.Popen(
                [sys.executable, "-m", "shoal.cli", "train", *words, *overrides],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return self.trainer

    def last_step(self) -> int:
        return max((row["step"] for row in read_rows(self.folder)), default=0)

    def changed(self) -> int:
        file = self.folder / "metrics.jsonl"
        return file.stat().st_mtime_ns if file.exists() else 0

    def newer(self, than: int) -> bool:
        return self.changed() > than

    def goes_on(self, steps: int = 2) -> None:
        """Waits until the run has written so many more rows."""
        for _ in range(steps):
            self.until(partial(self.newer, self.changed()), "the run gets on")

    def until(self, happened: Callable[[], bool], what: str, seconds: float = DEADLINE, alive: bool = True) -> None:
        deadline = monotonic() + seconds
        while not happened():
            if alive and self.trainer is not None and self.trainer.poll() is not None:
                raise AssertionError(f"the run ended while waiting that {what}:\n{self.log_tail()}")
            if monotonic() > deadline:
                raise AssertionError(f"not within {seconds:g} s: {what}\n{self.log_tail()}")
            sleep(0.005)

    def log_tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-25:])

    # Its processes.

    def children(self, victim: str = "") -> list[psutil.Process]:
        """What the present trainer has started, and still runs."""
        assert self.trainer is not None
        return [one for one in owned(self.trainer.pid) if any(victim in word for word in command(one))]

    def strike(self, moment: Moment) -> None:
        """Sends the signal, and sees that the run gets over it; a trainer that was killed is resumed."""
        trainer = self.trainer
        assert trainer is not None
        sleep(moment.after)
        if moment.victim == TRAINER:
            trainer.send_signal(moment.signal)
            if moment.signal == signal.SIGKILL:
                self.ended()
                self.start()
            else:
                sleep(self.random.uniform(0.0, 1.5 * TIMEOUT))
                trainer.send_signal(signal.SIGCONT)
        else:
            self.until(lambda: bool(self.children(moment.victim)), f"there is a {moment.victim}")
            chosen = self.random.choice(self.children(moment.victim))
            chosen.send_signal(moment.signal)
            if moment.signal == signal.SIGSTOP:
                self.until(lambda: gone(chosen), f"the stopped {moment.victim} is replaced")
        self.goes_on()

    def ended(self) -> int:
        """Waits for the trainer's end, and that nothing is left of it. Its status."""
        assert self.trainer is not None
        status = self.trainer.wait(DEADLINE)
        pid = self.trainer.pid
        self.until(lambda: not owned(pid), f"no process is left ({owned(pid)})", GONE_SECONDS, alive=False)
        return status

    def weather(self, struck: list[Moment]) -> None:
        """The whole storm: start, all moments, and a last resume that ends by itself."""
        self.start()
        self.goes_on()
        for number, moment in enumerate(struck):
            began = monotonic()
            self.strike(moment)
            self.say(f"{number + 1}: {moment}: step {self.last_step()}, {monotonic() - began:.1f} s")
        assert self.trainer is not None
        self.trainer.send_signal(signal.SIGTERM)
        assert self.ended() == STOPPED, self.log_tail()
        self.start(f"run.steps={self.last_step() + TAIL}")
        assert self.ended() == 0, self.log_tail()

    def kill(self) -> None:
        """Whatever is left."""
        if self.trainer is not None:
            self.trainer.kill()
            self.trainer.wait(DEADLINE)
            for one in owned(self.trainer.pid):
                with suppress(psutil.NoSuchProcess):
                    one.kill()


def command(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return process.cmdline()
    return []


def gone(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True


def owned(pid: int) -> list[psutil.Process]:
    """Processes that the one of this id has started: they bear its id."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(OWNER) == str(pid) and not gone(process):
                found.append(process)
    return found


def prove_trained_once(folder: Path, steps: int, prompts: int) -> None:
    """No prompt is trained twice, and none is left out but those of groups that failed. Data are not shuffled."""
    drawn = []
    for step in range(1, steps + 1):
        groups = GroupRecording(folder).read(step)
        assert groups is not None and len(groups) == prompts, f"step {step}"
        drawn += [(group.epoch, int(group.id.rpartition("/")[2])) for group in groups]
    twice = {one for one in drawn if drawn.count(one) > 1}
    assert not twice, f"trained twice: {sorted(twice)}"
    rows = [row for row in read_rows(folder) if "count/completions" in row]
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    failed = int(sum(row["async/failed"] for row in rows))
    assert max(drawn)[1] < len(drawn) + failed, f"left out: {len(drawn)} trained, {failed} failed, last {max(drawn)}"
    assert max(row["async/staleness_oldest"] for row in rows) <= 3
