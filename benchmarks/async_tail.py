"""Speed of the real `AsyncSource` on a long tail: completions take simulated times, and nothing is computed.

    python benchmarks/async_tail.py

Completions take log-normal times, one in fifty ten times longer; G = 8, eight groups a step, as in docs/async.md, at
1/100 of its times. Threads, slots and take rule are those of a run. One core is enough.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from random import Random
from threading import Condition
from time import monotonic, sleep
from types import SimpleNamespace
from typing import Any

from async_picture import GROUPS, LENGTHS, SIZE, STEP_SECONDS, outcome

from shoal.config import load_config
from shoal.engines.base import Engine, EngineOutput, Request
from shoal.monitor.progress import ProgressDisplay
from shoal.rewards.report import ScoreReport
from shoal.rollout.engine_model import EngineModel
from shoal.rollout.rollouts import Rollouts
from shoal.rollout.single_turn import SingleTurnEnvironment
from shoal.training.async_source import AsyncSource
from shoal.training.sources import SyncSource
from shoal.types import Group, Prompt, Segment, StopReason

SCALE = 0.01
FLOWS = ((1, 1), (2, 2), (4, 1), (4, 4))


class SleepingEngine(Engine):
    """Every completion is one token, and takes a time that its seed decides."""

    version = 0
    max_length = 64

    def __init__(self) -> None:
        self.due: list[tuple[float, Request, int]] = []
        self.changed = Condition()

    def submit(self, requests: Sequence[Request]) -> None:
        with self.changed:
            for request in requests:
                self.due.append((monotonic() + SCALE * seconds_of(request), request, self.version))

    @property
    def in_flight(self) -> int:
        return len(self.due)

    def poll(self, timeout: float) -> list[EngineOutput]:
        with self.changed:
            now = monotonic()
            first = min((due for due, _, _ in self.due), default=now)
            self.changed.wait(min(max(first - now, 0.0), timeout))
            now = monotonic()
            found = [one for one in self.due if one[0] <= now]
            self.due = [one for one in self.due if one[0] > now]
        return [EngineOutput(one.id, [1], [0.0], StopReason.STOP, [(0, version)]) for _, one, version in found]

    def abort(self, ids: Sequence[str]) -> None:
        with self.changed:
            self.due = [one for one in self.due if one[1].id not in ids]

    def logprobs(self, segments: Sequence[Segment], temperature: float = 1.0) -> list[list[float]]:
        return [[0.0] * len(segment.sampled_ids) for segment in segments]


class Rewarder:
    """Scores at once."""

    def begin(self, group: Group, step: int | None) -> None:
        """Nothing takes time."""

    def look(self) -> None:
        """The same."""

    def forget(self) -> None:
        """The same."""

    def snapshot(self) -> dict[str, Any]:
        return {}

    def finish(self, groups: Sequence[Group], step: int) -> ScoreReport:
        for group in groups:
            for place, completion in enumerate(group.completions):
                completion.reward = float(place % 2)
        return ScoreReport(completions=sum(len(group.completions) for group in groups))


def seconds_of(request: Request) -> float:
    """A completion's time: the same in every run."""
    random = Random(request.seed)
    slow = random.random() < LENGTHS.slow_share
    return LENGTHS.median * random.lognormvariate(0.0, LENGTHS.spread) * (LENGTHS.slow_factor if slow else 1.0)


def run(bound: int, lead: int, steps: int) -> tuple[float, list[int]]:
    """Seconds of so many steps, and the age of each group that was trained on."""
    keys = ["source=async", "engine.processes=1", "weight_sync=broadcast"] if bound else []
    sizes = [f"run.prompts_per_step={GROUPS}", f"run.group_size={SIZE}", f"run.steps={steps}", "monitor.progress=off"]
    flow = [f"source.max_staleness={bound}", f"source.lead={lead}"] if bound else []
    cfg = load_config("story", [*keys, *flow, *sizes])
    engine, scorer, progress = SleepingEngine(), Rewarder(), ProgressDisplay("off", steps)
    environment = SingleTurnEnvironment(cfg, None, lambda ids: "")
    rollouts = Rollouts(environment, EngineModel(engine), scorer)
    prompts = [Prompt(f"prompt {number}", [1], None) for number in range(steps * GROUPS)]
    parts: Any = SimpleNamespace(
        task=SimpleNamespace(train=prompts),
        engine=engine,
        rollouts=rollouts,
        scorer=scorer,
        learner=SimpleNamespace(version=0),
    )
    monitor: Any = SimpleNamespace(phase=lambda name: nullcontext(), progress=progress, message=lambda line: None)
    source = AsyncSource(cfg, parts, monitor, steps, lambda: False) if bound else SyncSource(cfg, parts, monitor)
    ages, started = [], monotonic()
    for step in range(1, steps + 1):
        groups = source.next_groups(step)
        ages += [step - 1 - group.completions[0].first_version for group in groups]
        sleep(SCALE * STEP_SECONDS)
        engine.version = parts.learner.version = step
        source.published(step)
    seconds = monotonic() - started
    source.close()
    rollouts.close()
    return seconds, ages


def main() -> None:
    """Prints the table of RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=80)
    options = parser.parse_args()
    sync, _ = run(0, 0, options.steps)
    print(f"sync: {sync / options.steps / SCALE:.0f} s a step")
    print("| S | L | times sync | mean staleness | oldest | simulated |")
    base = outcome(0, 0).seconds
    for bound, lead in FLOWS:
        seconds, ages = run(bound, lead, options.steps)
        simulated = base / outcome(bound, lead).seconds
        row = f"{sync / seconds:.2f} | {sum(ages) / len(ages):.2f} | {max(ages)} | {simulated:.2f}"
        print(f"| {bound} | {lead} | {row} |", flush=True)


if __name__ == "__main__":
    main()
