"""The self-check of a weight sync: the engine's log-probs of a fixed probe against the learner's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

import torch

from shoal.config.nodes.parts import WeightSyncConfig
from shoal.engines.base import Engine
from shoal.engines.vllm.control import VllmControl
from shoal.errors import TrainingError
from shoal.learners.base import Learner
from shoal.runtime import Runtime
from shoal.types import Prompt, Segment

PROBES = 4
PROBE_TOKENS = 24


def make_probe(prompts: Sequence[Prompt], vocabulary: int, max_tokens: int) -> list[Segment]:
    """A few real prompts, each followed by fixed random ids, so that every layer and the head are exercised.

    The last probe strings prompts together to more than 300 tokens: a prefix cache that was not reset shows only there.
    No probe is longer than `max_tokens`, what model and engine can take.
    """
    random = Random(0)
    room = max_tokens - PROBE_TOKENS
    contexts = [list(prompt.token_ids)[:room] for prompt in prompts[:PROBES]]
    long: list[int] = []
    while len(long) <= 300 and contexts:
        long += contexts[len(long) % len(contexts)]
    return [
        Segment(context, ids, [0.0] * PROBE_TOKENS, [True] * PROBE_TOKENS)
        for context in [*contexts, long[: min(320, room)]]
        for ids in [[random.randrange(vocabulary) for _ in range(PROBE_TOKENS)]]
    ]


def logprob_tolerance(cfg: WeightSyncConfig, runtime: Runtime) -> float:
    """How far engine and learner may differ, in nats: as configured, else by the precision of the matrix products."""
    if cfg.self_check_tolerance:
        return cfg.self_check_tolerance
    exact = runtime.param_dtype is torch.float32 and runtime.compute_dtype is None
    return 1e-4 if exact else 0.2


class SelfCheck:
    """Compares engine and learner on the first version and on those that `every` divides (0: the first only)."""

    def __init__(self, engine: Engine, learner: Learner, probe: list[Segment], every: int, tolerance: float) -> None:
        self.engine = engine
        self.learner = learner
        self.probe = probe
        self.every = every
        self.tolerance = tolerance
        self.checked = False

    def due(self, version: int) -> bool:
        """The first version of a process, and from then on those that `every` divides."""
        return not self.checked or (self.every > 0 and version % self.every == 0)

    def warm_up(self, version: int) -> None:
        """Before a version that will be checked, fills the prefix caches with the old weights' keys and values: if they
        are not reset, the check finds them."""
        if self.due(version):
            for control in self.controls():
                control.sample_token(self.probe[-1].context_ids)

    def run(self, version: int) -> float | None:
        """The largest difference of log-probs, in nats, or None where no check was due.

        The mean difference may be a tenth of the tolerance: in 16 bits a single token may be far off by rounding, but
        weights that are one step old move the mean. Every vLLM is asked for itself, and samples one token more: scoring
        passes the prefix cache by, sampling does not.

        Raises:
            TrainingError: the engine holds another version, or its log-probs differ by more than the tolerance.
        """
        if self.engine.version != version:
            raise TrainingError(
                f"weight sync: the engine holds version {self.engine.version} after version {version} was published"
            )
        if not self.due(version):
            return None
        self.checked = True
        largest = 0.0
        for name, differences in self.measured():
            worst, mean = max(differences), sum(differences) / len(differences)
            if not (worst <= self.tolerance and mean <= self.tolerance / 10):
                raise TrainingError(
                    f"weight sync: at version {version} {name} log-probs differ from the learner's by {mean:.2g} on "
                    f"average and {worst:.2g} at most (allowed: {self.tolerance / 10:.2g} and {self.tolerance:.2g}); "
                    "its weights are stale or computed otherwise. weight_sync.self_check_tolerance sets what is allowed"
                )
            largest = max(largest, worst)
        for control in self.controls():
            largest = max(largest, self.check_sampled(control, version))
        return largest

    def controls(self) -> Sequence[VllmControl]:
        """The engine's vLLMs; none where it is another kind of engine."""
        return getattr(self.engine, "controls", ())

    def measured(self) -> Iterator[tuple[str, list[float]]]:
        """|engine - learner| of each of the probe's tokens, in nats, for the engine or for each of its vLLMs."""
        learner = self.learner.logprobs(self.probe)
        controls = self.controls()
        for control in controls:
            yield f"{control.name}'s", distances(control.logprobs(self.probe), learner)
        if not controls:
            yield "the engine's", distances(self.engine.logprobs(self.probe), learner)

    def differences(self) -> list[float]:
        """|engine - learner| of each of the probe's tokens, in nats, over all of the engine."""
        return [value for _, values in self.measured() for value in values]

    def check_sampled(self, control: VllmControl, version: int) -> float:
        """The difference of the log-prob of one token that was sampled through the prefix cache.

        Raises:
            TrainingError: it is above the tolerance.
        """
        context = self.probe[-1].context_ids
        token, logprob = control.sample_token(context)
        [[expected]] = self.learner.logprobs([Segment(context, [token], [0.0], [True])])
        difference = abs(logprob - expected)
        if not difference <= self.tolerance:
            raise TrainingError(
                f"weight sync: at version {version} a token that {control.name} samples after {len(context)} tokens "
                f"has a log-prob {difference:.2g} from the learner's (allowed: {self.tolerance:.2g}), while its scores "
                "are right: its prefix cache was not reset"
            )
        return difference


def distances(mine: list[list[float]], theirs: list[list[float]]) -> list[float]:
    """|mine - theirs| of each token, in order."""
    return [
        abs(one - other)
        for row, expected in zip(mine, theirs, strict=True)
        for one, other in zip(row, expected, strict=True)
    ]
