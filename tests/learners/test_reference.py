"""The reference policy and the KL in the reward."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import make_batch

from shoal.errors import ConfigError
from shoal.learners.local import LocalLearner
from shoal.references.base import penalise_with_kl
from shoal.references.model import ModelReference
from shoal.types import Completion, Group, Segment, StopReason

Make = Callable[..., LocalLearner]


def groups() -> list[Group]:
    """Two completions, the second with two segments, a masked token and nothing sampled in its last segment."""
    first = [Segment([3, 4, 5], [6, 7, 8], [0.0] * 3, [True] * 3)]
    second = [
        Segment([3, 4, 5], [9, 10], [0.0] * 2, [True, False]),
        Segment([3, 4, 5, 9], [11], [0.0], [True]),
        Segment([3], [], [], []),
    ]
    return [Group("g", [Completion(first, StopReason.STOP), Completion(second, StopReason.STOP)])]


def make_reference(learner: LocalLearner) -> ModelReference:
    return ModelReference(learner.policy, learner.cfg, learner.runtime)


def scores(reference: ModelReference) -> list[list[float]]:
    scored = groups()
    reference.score(scored)
    found = [segment.ref_logprobs for one in scored[0].completions for segment in one.segments]
    assert all(row is not None for row in found)
    return found  # type: ignore[return-value]


def own(learner: LocalLearner) -> list[list[float]]:
    return learner.logprobs([segment for one in groups()[0].completions for segment in one.segments])


@pytest.mark.parametrize("train", ["full", "lora"])
def test_the_reference_stays_where_the_policy_began(make_learner: Make, train: str):
    learner = make_learner(model__train=train, optimizer__lr=0.1)
    reference = make_reference(learner)
    start = own(learner)
    assert scores(reference) == start
    assert [len(row) for row in start] == [3, 2, 1, 0]
    learner.train(make_batch())
    assert scores(reference) == start
    assert own(learner) != start
    assert reference.state_dict() == {}


def test_under_lora_the_reference_is_the_policys_own_base_and_leaves_the_adapter_on(make_learner: Make):
    learner = make_learner(model__train="lora", optimizer__lr=0.1)
    reference = make_reference(learner)
    assert reference.own is learner.policy
    learner.train(make_batch())
    moved = own(learner)
    scores(reference)
    assert own(learner) == moved


def test_another_model_can_be_the_reference(make_learner: Make, model_folder: Any):
    learner = make_learner("qwen3", reference__name=str(model_folder("llama")))
    assert scores(make_reference(learner)) == own(make_learner("llama"))


def test_a_missing_reference_names_its_own_key(make_learner: Make, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"reference\.name"):
        make_reference(make_learner(reference__name=str(tmp_path / "nowhere")))


def test_polyak_moves_the_reference_every_n_batches_and_its_state_resumes(make_learner: Make):
    learner = make_learner(reference__polyak_every=2, reference__polyak_alpha=0.25, optimizer__lr=0.1)
    reference = make_reference(learner)
    weight = "model.layers.0.mlp.up_proj.weight"
    start = learner.policy.model.get_parameter(weight).detach().clone()
    learner.train(make_batch())
    assert not reference.follow(learner.version)
    learner.train(make_batch())
    assert reference.follow(learner.version)
    now = learner.policy.model.get_parameter(weight)
    expected = 0.25 * now + 0.75 * start
    torch.testing.assert_close(reference.own.model.get_parameter(weight), expected)
    other = make_reference(make_learner(reference__polyak_every=2))
    assert scores(other) != scores(reference)
    other.load_state_dict(reference.state_dict())
    assert scores(other) == scores(reference)


def test_a_polyak_reference_in_sixteen_bits_moves_as_the_average_in_float64_does(make_learner: Make):
    """40 updates at .05: each moves a weight by less than half of bfloat16's spacing, so none may be rounded away."""
    learner = make_learner(
        model__dtype="bfloat16", reference__polyak_every=1, reference__polyak_alpha=0.05, optimizer__lr=1e-4
    )
    reference = ModelReference(learner.policy, learner.cfg, learner.runtime, learner.trained_weights)
    weight = "model.layers.0.mlp.up_proj.weight"
    start = learner.trained_weights()[weight].double()
    expected = start.clone()
    for _ in range(40):
        learner.train(make_batch())
        reference.follow(learner.version)
        expected.lerp_(learner.trained_weights()[weight].double(), 0.05)
    found = reference.average[weight]
    assert (expected - start).norm() > 0
    assert (found.double() - expected).norm() < 1e-3 * (expected - start).norm()
    assert torch.equal(reference.own.model.get_parameter(weight), found.bfloat16())


def test_a_polyak_reference_of_an_adapter_averages_what_its_matrices_multiply_to(make_learner: Make):
    learner = make_learner(
        model__train="lora", reference__polyak_every=1, reference__polyak_alpha=0.5, optimizer__lr=0.1
    )
    reference = ModelReference(learner.policy, learner.cfg, learner.runtime, learner.trained_weights)
    name, module = next((n, one) for n, one in learner.policy.causal_lm.named_modules() if hasattr(one, "lora_A"))

    def whole() -> torch.Tensor:
        product = module.lora_B["default"].weight @ module.lora_A["default"].weight
        return (module.get_base_layer().weight + module.scaling["default"] * product).detach().clone()

    expected = whole()
    for _ in range(3):
        learner.train(make_batch())
        reference.follow(learner.version)
        expected = 0.5 * whole() + 0.5 * expected
    assert (expected - whole()).norm() > 1e-3, "the average lags behind"
    torch.testing.assert_close(reference.own.model.get_parameter(f"{name}.weight"), expected)


def test_polyak_of_another_architecture_is_refused(make_learner: Make, model_folder: Any):
    learner = make_learner("qwen3", reference__name=str(model_folder("gpt2")), reference__polyak_every=1)
    with pytest.raises(ConfigError, match="needs the policy's architecture"):
        make_reference(learner)


def test_the_kl_penalty_is_the_sum_of_log_ratios_over_trained_tokens(make_learner: Make):
    learner = make_learner(optimizer__lr=0.05)
    reference = make_reference(learner)
    learner.train(make_batch())
    scored = groups()
    reference.score(scored)
    penalise_with_kl(scored, learner, kl_coef=0.5)
    gaps = [np.array(a) - np.array(b) for a, b in zip(own(learner), scores(reference), strict=True)]
    expected = [0.5 * gaps[0].sum(), 0.5 * (gaps[1][0] + gaps[2][0])]
    found = [one.penalties["kl"] for one in scored[0].completions]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert abs(expected[0]) > 1e-3


def test_a_penalty_without_a_scored_reference_is_an_error(make_learner: Make):
    with pytest.raises(ValueError, match=r"call Reference\.score first"):
        penalise_with_kl(groups(), make_learner(), 0.1)


def test_kl_in_the_loss_pulls_towards_the_reference(make_learner: Make):
    # Zero advantages: the KL alone moves the weights, so the distance to the reference shrinks.
    learner = make_learner(algorithm__kl_coef=1.0, optimizer__lr=3e-3, optimizer__max_grad_norm=0.0)
    reference = make_reference(learner)
    with torch.no_grad():
        for parameter in learner.policy.model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    batch = make_batch(segments=False)
    scored = [
        Segment(one.ids[: one.context].tolist(), one.ids[one.context :].tolist(), [], one.mask.tolist())
        for one in batch.sequences
    ]
    reference.score([Group("g", [Completion(scored, StopReason.STOP)])])
    for one, segment in zip(batch.sequences, scored, strict=True):
        one.ref_logprobs = np.array(segment.ref_logprobs, dtype=np.float32)
        one.advantages[:] = 0.0
    found = [learner.train(batch)["kl_ref/k3"] for _ in range(8)]
    assert found[-1] < 0.5 * found[0]
