"""The self-check of a weight sync: the engine's log-probs of a fixed probe against the learner's."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import torch

from shoal.config.parts import WeightSyncConfig
from shoal.engines.base import Engine
from shoal.errors import TrainingError
from shoal.learners.base import Learner
from shoal.runtime import Runtime
from shoal.types import Prompt, Segment

PROBES = 4
PROBE_TOKENS = 24


def make_probe(prompts: Sequence[Prompt], vocabulary: int, max_tokens: int) -> list[Segment]:
    """A few real prompts, each followed by fixed random ids, so that every layer and the head are exercised.

    The last probe strings prompts together to more than 300 tokens: a prefix cache that was not reset shows only there.
    No probe is longer than `max_tokens`, the model's positions.
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

    def run(self, version: int) -> float | None:
        """The largest difference of log-probs, in nats, or None where no check was due.

        The mean difference may be a tenth of the tolerance: in 16 bits a single token may be far off by rounding, but
        weights that are one step old move the mean.

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
        differences = self.differences()
        largest, mean = max(differences), sum(differences) / len(differences)
        if not (largest <= self.tolerance and mean <= self.tolerance / 10):
            raise TrainingError(
                f"weight sync: at version {version} the engine's log-probs differ from the learner's by {mean:.2g} on "
                f"average and {largest:.2g} at most (allowed: {self.tolerance / 10:.2g} and {self.tolerance:.2g}); its "
                "weights are stale or computed otherwise. weight_sync.self_check_tolerance sets what is allowed"
            )
        return largest

    def differences(self) -> list[float]:
        """|engine - learner| of each of the probe's tokens, in nats."""
        engine = self.engine.logprobs(self.probe)
        learner = self.learner.logprobs(self.probe)
        return [
            abs(mine - theirs)
            for row, other in zip(engine, learner, strict=True)
            for mine, theirs in zip(row, other, strict=True)
        ]
