"""Keys of `reference`."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from effects.made import made_groups
from effects.registry import effect
from shoal.learners.reference import ReferencePolicy


@pytest.fixture
def reference_of(settings, make_learner):
    """A learner and the reference of its policy, under changed keys."""

    def make(changes: dict[str, object]):
        cfg = settings({"algorithm.kl_coef": 0.1, **changes})
        learner = make_learner(cfg)
        return learner, ReferencePolicy(learner.policy, cfg, learner.runtime)

    return make


@effect("reference.name")
def test_the_kl_is_measured_to_the_named_model(settings, reference_of, other_model):
    def distance(changes: dict[str, object]) -> float:
        """The largest difference of a token's log-probs between policy and reference."""
        learner, reference = reference_of(changes)
        groups = made_groups()
        reference.score(groups)
        segments = [one.segments[0] for group in groups for one in group.completions]
        rows = learner.logprobs(segments)
        return max(
            abs(mine - theirs)
            for row, segment in zip(rows, segments, strict=True)
            for mine, theirs in zip(row, segment.ref_logprobs, strict=True)
        )

    assert distance({}) < 1e-5
    assert distance({"reference.name": str(other_model)}) > 0.1


@effect("reference.revision")
def test_the_references_revision_reaches_the_hub(settings, reference_of, other_model, monkeypatch):
    # Local folders have no revisions: what would go to the Hub is looked at where it leaves Shoal.
    asked: dict[str, str | None] = {}
    load = AutoModelForCausalLM.from_pretrained

    def from_pretrained(name: str, **kwargs: object) -> object:
        asked[name] = kwargs["revision"]
        return load(name, **kwargs)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    for revision in (None, "v2"):
        reference_of({"reference.name": str(other_model), "reference.revision": revision})
        assert asked[str(other_model)] == revision


@effect("reference.polyak_every", "reference.polyak_alpha")
def test_the_reference_follows_the_policy(settings, reference_of):
    def share_after_each_step(changes: dict[str, object]) -> list[float]:
        """How far the reference has come on the way from the start to the policy of now."""
        learner, reference = reference_of(changes)
        mine, theirs = (dict(one.model.named_parameters()) for one in (learner.policy, reference.own))
        name = "model.layers.0.mlp.up_proj.weight"
        start = mine[name].detach().clone()
        shares = []
        for version in (1, 2):
            with torch.no_grad():
                mine[name].add_(1.0)
            reference.follow(version)
            shares.append(round(float((theirs[name] - start).mean()), 4))
        return shares

    assert share_after_each_step({}) == [0, 0]
    # The policy is 1 and 2 away from the start: .6 x 1, then .6 x 2 + .4 x .6.
    assert share_after_each_step({"reference.polyak_every": 1}) == [0.6, 1.44]
    assert share_after_each_step({"reference.polyak_every": 2}) == [0, 1.2]
    assert share_after_each_step({"reference.polyak_every": 1, "reference.polyak_alpha": 1.0}) == [1, 2]
