"""Runs whose rollouts are ahead, and the proof that their records are true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.api import train
from shoal.config import load_config
from shoal.training.recording import GroupRecording
from shoal.training.state import Run
from shoal.types import Completion, Segment

STEPS, BOUND = 8, 2
SMALL = [
    "source=async",
    f"source.max_staleness={BOUND}",
    f"run.steps={STEPS}",
    "run.prompts_per_step=4",
    "run.group_size=4",
    "run.preflight=false",
    "run.record_groups=true",
    "runtime.target=cpu",
    "runtime.mixed_precision=none",
    "runtime.threads=1",
    "optimizer.lr=1e-3",
    "optimizer.warmup_steps=0",
    "evaluation.at_start=false",
    "evaluation.every=4",
    "evaluation.prompts=8",
    "checkpoint.every=0",
    "checkpoint.save_final=false",
    "monitor.progress=off",
    "monitor.tensorboard=false",
]


def prove_versions(overrides: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains. Each prompt is trained on once, within the bound; the log-probs of all tokens are those of the weights
    of their versions, which are kept and scored with again. With `keep`, some completions are of several versions."""
    weights: dict[int, dict[str, torch.Tensor]] = {}
    learner: Any = None
    publish = Run.publish

    def keep_weights(run: Run, **options: Any) -> dict[str, float]:
        nonlocal learner
        learner = run.parts.learner
        model = learner.policy.model
        weights.setdefault(learner.version, {name: value.detach().clone() for name, value in model.named_parameters()})
        return publish(run, **options)

    monkeypatch.setattr(Run, "publish", keep_weights)
    cfg = load_config("story", [*SMALL, *overrides])
    train(cfg, folder)
    found: list[Completion] = []
    names = []
    for step in range(1, cfg.run.steps + 1):
        groups = GroupRecording(folder).read(step)
        assert groups is not None and len(groups) == 4
        names += [(group.id, group.epoch) for group in groups]
        found += [one for group in groups for one in group.completions]
        assert max(step - 1 - one.first_version for group in groups for one in group.completions) <= BOUND
    assert len(set(names)) == len(names)
    assert len({version for one in found for _, version in one.versions}) > 1
    assert any(len(one.versions) > 1 for one in found) == (cfg.weight_sync.in_flight == "keep")
    worst = 0.0
    for version, values in weights.items():
        parts, sampled = stretches(found, version)
        if not parts:
            continue
        with torch.no_grad():
            for name, value in learner.policy.model.named_parameters():
                value.copy_(values[name])
        for row, expected in zip(learner.logprobs(parts), sampled, strict=True):
            worst = max(worst, *(abs(one - other) for one, other in zip(row, expected, strict=True)))
    assert worst < 1e-4


def stretches(completions: list[Completion], version: int) -> tuple[list[Segment], list[list[float]]]:
    """What was sampled with a version, each with what stood before it; and the sampler's log-probs."""
    parts, logprobs = [], []
    for one in completions:
        [segment] = one.segments
        ends = [start for start, _ in one.versions[1:]] + [len(segment.sampled_ids)]
        for (start, mine), end in zip(one.versions, ends, strict=True):
            if mine == version and end > start:
                size = end - start
                context = segment.context_ids + segment.sampled_ids[:start]
                parts.append(Segment(context, segment.sampled_ids[start:end], [0.0] * size, [True] * size))
                logprobs.append(segment.logprobs[start:end])
    return parts, logprobs
