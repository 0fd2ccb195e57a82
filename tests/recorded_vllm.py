"""A vLLM that writes down what it is asked and gives the learner's own log-probs, for what needs no vLLM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from shoal.engines.servers.control import Control
from shoal.learners.base import Learner
from shoal.types import Segment


class RecordedVllm(Control):
    """One worker. `answers` are functions of the arguments, by method of `ShoalWorker`."""

    name = "a recorded vLLM"

    def __init__(self, learner: Learner, answers: dict[str, Callable[..., Any]] | None = None) -> None:
        self.learner = learner
        self.answers = answers or {}
        self.asked: list[tuple[Any, ...]] = []
        self.held = -1
        self.cached: set[tuple[int, ...]] = set()

    def call_workers(self, method: str, *arguments: Any) -> list[Any]:
        self.asked.append((method, *arguments))
        if method in self.answers:
            return [self.answers[method](*arguments)]
        if method == "shoal_hold":
            self.held = arguments[0]
        return [{"version": self.held, "rank": 0, "pid": 0}]

    def pause(self, mode: str) -> None:
        self.asked.append(("pause", mode))

    def resume(self) -> None:
        self.asked.append(("resume",))

    def reset_prefix_cache(self) -> None:
        self.asked.append(("reset_prefix_cache",))
        self.cached.clear()

    def load_adapter(self, name: str, folder: Path, version: int) -> None:
        self.asked.append(("load_adapter", folder))
        self.held = version

    def logprobs(self, segments: Sequence[Segment]) -> list[list[float]]:
        return self.learner.logprobs(segments)

    def sample_token(self, prompt_ids: Sequence[int]) -> tuple[int, float]:
        [[logprob]] = self.learner.logprobs([Segment(list(prompt_ids), [5], [0.0], [True])])
        self.cached.add(tuple(prompt_ids))
        return 5, logprob

    def cached_tokens(self, prompt_ids: Sequence[int]) -> int:
        found = len(prompt_ids) if tuple(prompt_ids) in self.cached else 0
        self.cached.add(tuple(prompt_ids))
        return found

    def restart(self, model: Path) -> None:
        self.asked.append(("restart", model))
        self.held = int(model.name.removeprefix("version_"))

    def all(self, what: str) -> list[Any]:
        """The argument of each call of this name."""
        return [call[1] for call in self.asked if call[0] == what]


class RecordedEngine:
    """An engine of one recorded vLLM."""

    def __init__(self, control: Control) -> None:
        self.version = -1
        self.replicas = [control]
        self.restore: Callable[[Control], None] | None = None
        self.reviving = nullcontext()

    def refresh(self, version: int) -> None:
        self.version = version

    def revive(self) -> int:
        return 0
