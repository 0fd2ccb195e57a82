"""Accuracy on held-out prompts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import comb, sqrt
from statistics import stdev

from shoal.config import ShoalConfig
from shoal.monitor.metrics import is_right
from shoal.monitor.progress import ProgressDisplay
from shoal.rollout.environment import EVALUATION_EPOCH, Item
from shoal.rollout.sampling import sampling_params
from shoal.training.parts import Parts
from shoal.types import Group

CHUNK = 128


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Probability that at least one of k completions drawn without replacement from `samples`, of which `right` are
    right, is right: 1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv:2107.03374, eq. 1)."""
    return 1.0 - comb(samples - right, k) / comb(samples, k)


class Evaluator:
    """Samples the held-out prompts with fixed seeds, so that evaluations of one run differ by the weights alone."""

    def __init__(self, cfg: ShoalConfig, parts: Parts, display: ProgressDisplay | None = None) -> None:
        self.cfg = cfg
        self.parts = parts
        self.display = display
        self.prompts = list(parts.task.evaluation[: cfg.evaluation.prompts or None])

    def due(self, step: int) -> bool:
        """Between start and end; those two are the run's own decision."""
        every = self.cfg.evaluation.every
        return every > 0 and step % every == 0

    def run(self) -> tuple[dict[str, float], list[Group]]:
        """Metrics by name and the scored groups.

        `accuracy`: right completions / completions (a missing reward counts as not right and in `missing`);
        `reward`: mean over completions with a known reward, left out where there is none (a judge's marks are seldom
        full, so that accuracy says little of them); `pass@k`: mean over prompts; `length`: mean sampled tokens;
        `<source>/accuracy` where there are several sources.
        """
        sampling = sampling_params(self.cfg, self.cfg.evaluation.sampling)
        groups: list[Group] = []
        total = len(self.prompts) * self.cfg.evaluation.samples
        finished = self.display.sampling("evaluation", total) if self.display is not None else None
        for start in range(0, len(self.prompts), CHUNK):
            items = [Item(prompt, EVALUATION_EPOCH) for prompt in self.prompts[start : start + CHUNK]]
            groups += self.parts.rollouts.sample(
                items, size=self.cfg.evaluation.samples, sampling=sampling, progress=finished
            )
        self.parts.scorer.finish(groups)
        return evaluation_metrics(groups, self.cfg.evaluation.samples), groups


def sampling_error(groups: Sequence[Group]) -> dict[str, float]:
    """`accuracy_stderr`, and what it comes from: `prompts` and `completions`.

    The standard error of the mean over prompts of the share of right completions, sd / sqrt(n), with n - 1 in the
    standard deviation: completions of one prompt are not independent of each other. Left out for a single prompt.
    """
    shares = [sum(map(is_right, group.completions)) / len(group.completions) for group in groups]
    counts = {"prompts": len(groups), "completions": sum(len(group.completions) for group in groups)}
    return {"accuracy_stderr": stdev(shares) / sqrt(len(shares)), **counts} if len(shares) > 1 else dict(counts)


def evaluation_metrics(groups: Sequence[Group], samples: int) -> dict[str, float]:
    """See `Evaluator.run`. All of `groups` have `samples` completions."""
    completions = [completion for group in groups for completion in group.completions]
    total = max(len(completions), 1)
    metrics = {
        "accuracy": sum(map(is_right, completions)) / total,
        "length": sum(completion.num_sampled for completion in completions) / total,
        "missing": sum(completion.reward is None for completion in completions) / total,
    }
    known = [reward for group in groups for reward in group.known_rewards]
    if known:
        metrics["reward"] = sum(known) / len(known)
    rights = [sum(map(is_right, group.completions)) for group in groups]
    k = 1
    while k <= samples:
        metrics[f"pass@{k}"] = sum(pass_at_k(samples, right, k) for right in rights) / max(len(groups), 1)
        k *= 2
    by_source: dict[str, list[float]] = defaultdict(list)
    for group, right in zip(groups, rights, strict=True):
        by_source[group.prompt.source if group.prompt else ""].append(right / samples)
    if len(by_source) > 1:
        metrics |= {f"{source}/accuracy": sum(shares) / len(shares) for source, shares in by_source.items()}
    return metrics
