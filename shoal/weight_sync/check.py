"""The self-check of a weight sync: the engine's log-probs of a fixed probe against the learner's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import isfinite

import torch

from shoal.config.nodes.parts import WeightSyncConfig
from shoal.engines.base import Engine, Replica
from shoal.errors import TrainingError
from shoal.learners.base import Learner
from shoal.learners.own_tokens import distance
from shoal.runtime import Runtime
from shoal.types import Prompt, Segment

PROBES = 4
PROBE_TOKENS = 12
# Of a prompt's tokens, so many from its beginning and from its end: a check costs a few hundred tokens, whatever the
# prompts. The first have what a model expects there, the last are what its own samples follow.
FIRST, LAST = 8, 40
LONG = 320
# An engine whose log-probs moved by less than this share of the learner's has not got the new weights.
MOVED = 0.2
# The mean difference may grow to so many times what it was in earlier checks, and in any case to this share of the
# tolerance and to MOVED times what the last step moved: weights that are a step old, in part, are further off. Rounding
# grows as a policy sharpens, with its steps.
GROWTH = 5
FREE = 1 / 200
# Log-probs that move by less say nothing: it may be the order of a sum.
STILL = 1e-6
# The same of an engine beside a learner that rounds float32 weights in its products: what rounding does to the
# learner's log-probs can be many times what the step does to those of an engine that does not round.
STILL_BESIDE_ROUNDING = 1e-5


def probe_contexts(prompts: Sequence[Prompt], max_tokens: int) -> list[list[int]]:
    """A few real prompts, shortened; what follows them in the probe are the model's own samples, PROBE_TOKENS each.

    The last strings prompts together to LONG tokens: a prefix cache that was not reset shows only beyond 300. It ends
    with the first prompt, so that what follows that is likely here too. With what follows none is longer than
    `max_tokens`, what model and engine can take.
    """
    room = max_tokens - PROBE_TOKENS
    contexts = [_shortened(list(prompt.token_ids))[:room] for prompt in prompts[:PROBES] if prompt.token_ids]
    long: list[int] = []
    while len(long) < LONG and contexts:
        for context in contexts:
            long = context + long
    if contexts:
        long += contexts[0]
    return [*contexts, long[-min(LONG, room) :] or [0]]


def _shortened(ids: list[int]) -> list[int]:
    return ids if len(ids) <= FIRST + LAST else ids[:FIRST] + ids[-LAST:]


def make_probe(learner: Learner, prompts: Sequence[Prompt], max_tokens: int) -> list[Segment]:
    """The contexts of `probe_contexts`, each followed by what the model samples; the long one by what follows the
    prompt that it ends with, since a pass over it costs as much as all others."""
    *contexts, long = probe_contexts(prompts, max_tokens)
    probe = learner.sample(contexts or [long], PROBE_TOKENS)
    return [*probe, replace(probe[0], context_ids=long)] if contexts else probe


def logprob_tolerance(cfg: WeightSyncConfig, runtime: Runtime, rounding: float = 0.0) -> float:
    """How far engine and learner may differ, by `distance`: as configured, else by the precision of the matrix
    products and by what rounding does to this model (`rounding`, the mean over tokens), within bounds."""
    if cfg.self_check_tolerance:
        return cfg.self_check_tolerance
    exact = runtime.param_dtype is torch.float32 and runtime.compute_dtype is None
    least = 1e-4 if exact else 0.2
    return min(max(least, 40 * rounding), 10 * least)


def finite(rows: Sequence[Sequence[float]]) -> bool:
    """Whether all log-probs are numbers."""
    return all(isfinite(sum(row)) for row in rows)


class SelfCheck:
    """Compares engine and learner on the first two versions of a process, which are those before and after its first
    training step, and on those that `every` divides (0: no others)."""

    def __init__(self, engine: Engine, learner: Learner, probe: list[Segment], every: int, tolerance: float) -> None:
        self.engine = engine
        self.learner = learner
        self.probe = probe
        self.every = every
        self.tolerance = tolerance
        # The learner's products round its weights, which the engine's may not.
        self.rounds = learner.runtime.compute_dtype not in (None, learner.runtime.param_dtype)
        self.checked: set[int] = set()
        self.means: list[float] = []
        self.noted: tuple[int, list[list[float]]] | None = None  # a version, and the learner's log-probs of the probe
        self.before: tuple[int, list[list[float]], dict[str, list[list[float]]]] | None = None

    def due(self, version: int) -> bool:
        """The first two versions of a process, and from then on those that `every` divides."""
        return len(self.checked - {version}) < 2 or (self.every > 0 and version % self.every == 0)

    def looks_at(self, version: int) -> bool:
        """Whether this version is checked, or the next, for which it is measured how far both sides have moved."""
        return self.due(version) or self.due(version + 1)

    def note_learner(self, version: int) -> None:
        """Takes the learner's part of the check of this version, if it has one and has not been taken. The learner's
        model must be at rest; the rest of the check needs the engine only."""
        if self.looks_at(version) and (self.noted is None or self.noted[0] != version):
            self.noted = version, self.learner.logprobs(self.probe)

    def warm_up(self, version: int) -> None:
        """Before a version that will be checked, fills the prefix caches with the old weights' keys and values: if they
        are not reset, the check finds them."""
        if self.due(version):
            for replica in self.engine.replicas:
                replica.sample_token(self.probe[-1].context_ids)

    def run(self, version: int) -> float | None:
        """The largest difference of log-probs (see `distance`), or None where no check was due.

        The mean difference may be a tenth of the tolerance: in 16 bits a single token may be far off by rounding, but
        weights that are one step old move the mean. Where a step is smaller than rounding, they show by not moving
        since the version before, which is measured for this; and after two checks the mean may be GROWTH times what it
        was, so that an engine that has a part of the new weights is seen too. Every replica is asked for itself, and
        samples one token more: scoring passes the prefix cache by, sampling does not.

        Raises:
            TrainingError: the engine holds another version, its log-probs differ by more than the tolerance or did not
                move with the learner's, or a prefix cache was not reset.
        """
        if self.engine.version != version:
            raise TrainingError(
                f"weight sync: the engine holds version {self.engine.version} after version {version} was published"
            )
        due = self.due(version)
        if not self.looks_at(version):
            return None
        if due:
            for replica in self.engine.replicas:
                self.check_reset(replica, version)
        self.note_learner(version)
        assert self.noted is not None
        _, learner = self.noted
        measured = dict(self.scored())
        if not any(map(finite, (learner, *measured.values()))):
            # The weights have diverged on both sides, no fault of the sync: the next rollouts tell, and are kept.
            self.before = None
            return None
        # All is asked before anything is noted: where a server dies meanwhile, the check begins anew.
        context = self.probe[-1].context_ids
        sampled = [replica.sample_token(context) for replica in self.engine.replicas] if due else []
        before, self.before = self.before, (version, learner, measured)
        if not due:
            return None
        first = not self.checked
        self.checked.add(version)
        mean_allowed = self.mean_allowed(mean_moved(before[1], learner) if before else 0.0)
        largest = 0.0
        for name, rows in measured.items():
            differences = distances(rows, learner)
            worst, mean = max(differences), sum(differences) / len(differences)
            still = before is not None and stood_still(
                before[1], learner, before[2].get(name), rows, rounds=self.rounds
            )
            if still or not (worst <= self.tolerance and mean <= mean_allowed):
                allowed = f"allowed: {mean_allowed:.2g} and {self.tolerance:.2g}"
                if still and before is not None:
                    why = f"they are still those of version {before[0]}, so its weights are stale"
                elif first:
                    why = (
                        "it has other weights, or computes otherwise. Where that is known and meant, "
                        "weight_sync.self_check_tolerance sets what is allowed"
                    )
                else:
                    why = (
                        "its weights are stale, or it computes otherwise. weight_sync.self_check_tolerance sets what "
                        "is allowed"
                    )
                raise TrainingError(
                    f"weight sync: at version {version} {name} log-probs differ from the learner's by {mean:.2g} on "
                    f"average and {worst:.2g} at most ({allowed}): {why}"
                )
            largest = max(largest, worst)
            self.means.append(mean)
        for replica, (token, logprob) in zip(self.engine.replicas, sampled, strict=True):
            largest = max(largest, self.check_sampled(replica, version, token, logprob))
        return largest

    def mean_allowed(self, moved: float) -> float:
        """The largest mean difference allowed now, where the last step moved the learner's log-probs by `moved`."""
        most = self.tolerance / 10
        if len(self.checked) <= 2:
            return most
        return min(most, max(GROWTH * max(self.means), FREE * self.tolerance, MOVED * moved, 1e-5))

    def scored(self) -> Iterator[tuple[str, list[list[float]]]]:
        """Log-probs of the probe's tokens by each of the engine's replicas, or by the engine where it has none."""
        for replica in self.engine.replicas:
            yield f"{replica.name}'s", replica.logprobs(self.probe)
        if not self.engine.replicas:
            yield "the engine's", self.engine.logprobs(self.probe)

    def differences(self) -> list[float]:
        """The `distance` between engine and learner of each of the probe's tokens, over all of the engine."""
        learner = self.learner.logprobs(self.probe)
        return [value for _, rows in self.scored() for value in distances(rows, learner)]

    def check_reset(self, replica: Replica, version: int) -> None:
        """Asks for a token after the context that `warm_up` left in the prefix cache.

        Raises:
            TrainingError: some of it is still there.
        """
        cached = replica.cached_tokens(self.probe[-1].context_ids)
        if cached:
            raise TrainingError(
                f"weight sync: at version {version} {replica.name} still has {cached} tokens in its prefix cache that "
                "the weights before it gave: its prefix cache was not reset"
            )

    def check_sampled(self, replica: Replica, version: int, token: int, logprob: float) -> float:
        """The difference of the log-prob of one token that was sampled through the prefix cache from that which the
        same replica gives it when it scores, which passes the cache by.

        Raises:
            TrainingError: it is above the tolerance.
        """
        context = self.probe[-1].context_ids
        [[expected]] = replica.logprobs([Segment(context, [token], [0.0], [True])])
        difference = distance(logprob, expected)
        if not difference <= self.tolerance:
            raise TrainingError(
                f"weight sync: at version {version} a token that {replica.name} samples after {len(context)} tokens "
                f"has a log-prob {difference:.2g} from what it scores that token with (allowed: {self.tolerance:.2g}): "
                "its prefix cache was not reset"
            )
        return difference


def distances(mine: list[list[float]], theirs: list[list[float]]) -> list[float]:
    """The `distance` of each token's log-probs, in order."""
    return [
        distance(one, other)
        for row, expected in zip(mine, theirs, strict=True)
        for one, other in zip(row, expected, strict=True)
    ]


def mean_moved(before: list[list[float]], now: list[list[float]]) -> float:
    """The mean `distance` between the log-probs of the same tokens at two versions."""
    moved = distances(now, before)
    return sum(moved) / len(moved)


def stood_still(
    learner_before: list[list[float]],
    learner: list[list[float]],
    engine_before: list[list[float]] | None,
    engine: list[list[float]],
    *,
    rounds: bool,
) -> bool:
    """Whether the learner's log-probs moved and the engine's did not. True of stale weights in any precision: where
    both sides round alike, rounding moves with the weights too. `rounds` says that the learner may round more."""
    if engine_before is None:
        return False
    moved = distances(learner, learner_before)
    followed = distances(engine, engine_before)
    least = STILL_BESIDE_ROUNDING * len(moved) if rounds else MOVED * sum(moved)
    return sum(moved) > STILL * len(moved) and sum(followed) < least
