"""What asynchronous training costs and gains, as metrics, and in one sentence that names the bottleneck."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from shoal.types import Completion, Group

WINDOW = 10  # steps over which a bottleneck is named
SHARE = 0.2  # of the time, from which on a wait is worth a sentence
LATEST = 1000  # groups of whose durations the median is taken
SLOW = 2.0  # times the median duration, from which on a group counts as slow


@dataclass
class Finished:
    """A scored group that waits to be trained on. `start`, `version` are the engine's when it was started and when it
    was finished; `oldest` is that of its oldest token; `slow` says that it took long."""

    number: int
    group: Group
    start: int
    version: int
    oldest: int
    slow: bool = False


def token_ages(completion: Completion, version: int) -> tuple[int, int]:
    """The sum over a completion's sampled tokens of their age in versions, and their number."""
    ends = [start for start, _ in completion.versions[1:]] + [completion.num_sampled]
    counts = [(end - start, one) for (start, one), end in zip(completion.versions, ends, strict=True)]
    return sum(count * (version - one) for count, one in counts), sum(count for count, _ in counts)


@dataclass
class Tally:
    """What happened since the last step, and over the run. Seconds are wall time."""

    started: int = 0
    finished: int = 0
    failed: int = 0
    filtered: int = 0
    cut: int = 0
    tokens: int = 0
    engine_idle: float = 0.0
    waits: dict[str, float] = field(default_factory=lambda: {"due": 0.0, "groups": 0.0})
    durations: deque[float] = field(default_factory=deque)
    ordered: list[float] = field(default_factory=list)  # the durations, the shortest first
    slow_finished: list[int] = field(default_factory=lambda: [0, 0])
    slow_trained: list[int] = field(default_factory=lambda: [0, 0])
    recent: list[tuple[float, float, str]] = field(default_factory=list)

    def took(self, seconds: float) -> bool:
        """Notes how long a group took from start to finish; whether that is slow beside the others."""
        self.durations.append(seconds)
        insort(self.ordered, seconds)
        if len(self.durations) > LATEST:
            del self.ordered[bisect_left(self.ordered, self.durations.popleft())]
        slow = seconds > SLOW * self.ordered[len(self.ordered) // 2]
        self.slow_finished[0] += slow
        self.slow_finished[1] += 1
        return slow

    def of_step(self, taken: Sequence[Finished], version: int, seconds: float, trained_tokens: int) -> dict[str, float]:
        """The metrics of a step that trains on `taken`, `seconds` after the last, in which the learner was given
        `trained_tokens`; the counts begin anew.

        `async/staleness_mean` is over sampled tokens of the step, `_oldest` its oldest token's; `_in_flight` and
        `_in_queue` are means over groups: versions that were published while it was rolled out, and trained while it
        waited. `async/started`, `finished`, `failed`, `filtered`, `cut`: groups since the last step. `wait/learner_due`
        and `wait/learner_groups`: seconds for which the learner waited for a group that was due, or for enough groups;
        `wait/engine`: those in which no group was under way, for want of slots. `async/learner_idle` and `engine_idle`:
        their share of the step. `async/slow_share_finished` and `_trained`: share of groups that took more than twice
        the median, over the run: equal where nothing is selected.
        """
        ages = [token_ages(one, version) for item in taken for one in item.group.completions if one.versions]
        tokens = sum(count for _, count in ages)
        self.slow_trained[0] += sum(item.slow for item in taken)
        self.slow_trained[1] += len(taken)
        seconds = max(seconds, 1e-9)
        waited = sum(self.waits.values())
        metrics = {
            "async/staleness_mean": sum(age for age, _ in ages) / max(tokens, 1),
            "async/staleness_oldest": float(max((version - item.oldest for item in taken), default=0)),
            "async/staleness_in_flight": sum(max(item.version - item.start, 0) for item in taken) / max(len(taken), 1),
            "async/staleness_in_queue": sum(max(version - item.version, 0) for item in taken) / max(len(taken), 1),
            **{
                f"async/{name}": float(getattr(self, name))
                for name in ("started", "finished", "failed", "filtered", "cut")
            },
            "async/slow_share_finished": self.slow_finished[0] / max(self.slow_finished[1], 1),
            "async/slow_share_trained": self.slow_trained[0] / max(self.slow_trained[1], 1),
            "async/rollout_tokens_per_second": self.tokens / seconds,
            "async/learner_tokens_per_second": trained_tokens / max(seconds - waited, 1e-9),
            "async/learner_idle": min(waited / seconds, 1.0),
            "async/engine_idle": min(self.engine_idle / seconds, 1.0),
            "wait/learner_due": self.waits["due"],
            "wait/learner_groups": self.waits["groups"],
            "wait/engine": self.engine_idle,
        }
        why = max(self.waits, key=lambda name: self.waits[name])
        self.recent = [*self.recent[1 - WINDOW :], (metrics["async/learner_idle"], metrics["async/engine_idle"], why)]
        self.started = self.finished = self.failed = self.filtered = self.cut = self.tokens = 0
        self.engine_idle = 0.0
        self.waits = {"due": 0.0, "groups": 0.0}
        return metrics

    def bottleneck(self) -> tuple[str, str]:
        """Which side holds the other up over the last WINDOW steps, and a sentence with the key that moves it; both
        empty where none does or there were fewer steps."""
        if len(self.recent) < WINDOW:
            return "", ""
        learner = sum(one for one, _, _ in self.recent) / WINDOW
        engine = sum(one for _, one, _ in self.recent) / WINDOW
        if max(learner, engine) < SHARE:
            return "", ""
        if engine > learner:
            return "learner", (
                f"the learner is the bottleneck (the engine idles {engine:.0%} of the time): a faster device, or fewer "
                "processes or servers of the engine, balance them"
            )
        if sum(why == "due" for _, _, why in self.recent) > WINDOW // 2:
            return "slow groups", (
                f"slow groups are the bottleneck (the learner idles {learner:.0%} of the time): raise "
                "source.max_staleness, or set source.at_bound=cut"
            )
        return "rollouts", (
            f"rollouts are the bottleneck (the learner idles {learner:.0%} of the time): raise engine.processes or "
            "engine.vllm.servers, or source.lead where the engine has room for more groups"
        )
