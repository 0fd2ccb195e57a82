"""The processes of the test of exactly-once delivery: Shoal's own environment server, and its own source, journal and
checkpoints, around an environment and a learner that do nothing but count.

    python counting.py environment URL FOLDER
    python counting.py trainer URL FOLDER
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from shoal.config import ShoalConfig
from shoal.engines.base import SamplingParams
from shoal.errors import TrainingError
from shoal.rollout.environment import Environment, Item, Model
from shoal.rollout.rollouts import Rollouts
from shoal.rollout_api.client import ApiClient
from shoal.rollout_api.environment.server import EnvironmentServer
from shoal.types import Completion, Group, Prompt, Segment, StopReason

GROUP, BATCH = 2, 8
DEADLINE = 240.0
STOP, ACKNOWLEDGED, ATTEMPTED, LIVE, DONE = "stop", "acknowledged", "attempted", "live", "done.json"


def append(file: Path, lines: Sequence[str]) -> None:
    """In one write, so that a kill leaves all or nothing."""
    with file.open("ab", buffering=0) as out:
        out.write("".join(f"{line}\n" for line in lines).encode())


class Counting(Environment):
    """Completions whose rewards are known."""

    async def rollout(self, item: Item, index: int, model: Model, sampling: SamplingParams) -> Completion:
        await asyncio.sleep(random.uniform(0, 0.02))
        return Completion([Segment([1, 2], [3, 4], [-1.0, -1.0], [True, True])], StopReason.STOP, "34", reward=index)


class NewPrompts:
    """Prompts named by a session and a number; every group is new."""

    def __init__(self) -> None:
        self.session, self.made = os.urandom(4).hex(), 0

    def next(self, count: int) -> list[tuple[Prompt, int]]:
        numbers = range(self.made + 1, self.made + count + 1)
        self.made += count
        return [(Prompt(f"{self.session}/{number}", [1, 2]), 0) for number in numbers]


class Scored:
    """Groups have their rewards. At the end of the test nothing more is sent."""

    def __init__(self, stop: Path) -> None:
        self.stop = stop

    def finish(self, groups: Sequence[Group]) -> Scored:
        while self.stop.exists():
            time.sleep(0.05)
        return self

    def check(self) -> None:
        """Nothing is missing."""


class Counted(EnvironmentServer):
    """Writes down what it begins to send, and what the server has acknowledged."""

    folder: Path

    def send(self, groups: list[dict[str, Any]]) -> None:
        names = [group["generation_params"]["shoal"]["group"] for group in groups]
        append(self.folder / ATTEMPTED, names)
        super().send(groups)
        append(self.folder / ACKNOWLEDGED, names)


def run_environment(url: str, folder: Path) -> None:
    cfg = ShoalConfig()
    cfg.run.group_size = GROUP
    cfg.environment.ahead = 4.0
    rollouts = Rollouts(Counting(cfg, None, str), SimpleNamespace())  # type: ignore[arg-type]
    api = ApiClient(url, timeout=DEADLINE)
    server = Counted(rollouts, Scored(folder / STOP), NewPrompts(), "counting", api)  # type: ignore[arg-type]
    server.folder = folder
    asyncio.run(server.serve())


class Learner:
    """Counts batches."""

    version = 0


def run_trainer(url: str, folder: Path) -> None:
    # Imports torch, which the environment's process does without.
    from shoal.rollout_api.trainer.source import RolloutApiSource  # noqa: PLC0415
    from shoal.training.checkpoint import CheckpointStore  # noqa: PLC0415

    cfg = ShoalConfig()
    cfg.source.url, cfg.source.timeout = url, DEADLINE
    cfg.run.group_size, cfg.run.prompts_per_step = GROUP, BATCH // GROUP
    learner = Learner()
    info = SimpleNamespace(vocabulary=2**31, max_positions=2**31)
    parts = SimpleNamespace(engine=None, learner=learner, info=info, decode=str)
    monitor = SimpleNamespace(message=print, phase=lambda name: nullcontext())
    store = CheckpointStore(folder, keep_last=2)
    source = RolloutApiSource(cfg, parts, monitor, folder, 10**6, lambda: False)  # type: ignore[arg-type]
    step, trained = 0, []
    found = store.load()
    if found is not None:
        step, state = found
        source.load_state_dict(state["source"])
        trained = state["trained"]
    while True:
        if (folder / STOP).exists():
            source.cfg.source.timeout = 5.0
            if source.fetcher is not None:
                source.fetcher.timeout = source.fetcher.api.timeout = 5.0
        try:
            groups = source.next_groups(step + 1)
        except TrainingError as error:
            if not (folder / STOP).exists():
                raise
            (folder / DONE).write_text(json.dumps({"trained": trained, "why": str(error)}))
            return
        learner.version = step = step + 1
        trained.append([group.id for group in groups])
        append(folder / LIVE, [str(step)])
        if step % 3 == 0:
            store.save(step, {"source": source.state_dict(), "trained": trained})


if __name__ == "__main__":
    {"environment": run_environment, "trainer": run_trainer}[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
