"""Invariants 2 and 3: neither log-probs nor gradients depend on how sequences are laid out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import ARCHITECTURES, VOCABULARY, gradient, make_batch, make_config, relative

from shoal.learners.local import LocalLearner
from shoal.learners.model import load_policy
from shoal.learners.own_tokens import own_samples
from shoal.runtime import resolve_runtime
from shoal.types import Segment

Make = Callable[..., LocalLearner]
PADDED = {"learner__packing": "off"}
LAYOUTS: dict[str, dict[str, Any]] = {
    "packed": {"learner__packing": "on", "learner__share_prefix": False},
    "shared": {"learner__packing": "on", "learner__share_prefix": True},
    "shared, small micro-batches": {"learner__packing": "on", "learner__micro_batch_tokens": 40},
    "short rows, two completions": {
        "learner__packing": "on",
        "learner__pack_length": 30,
        "learner__micro_batch_size": 2,
    },
    "padded, one completion": {"learner__packing": "off", "learner__micro_batch_size": 1},
}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.usefixtures("true_float64")
def test_the_gradient_does_not_depend_on_the_layout(make_learner: Make, name: str, attention: str):
    if name == "gemma2" and attention == "sdpa":
        pytest.skip("its soft cap on attention scores needs eager attention")
    batch = make_batch()
    keys = {"model__attention": attention, "algorithm__entropy_coef": 0.01, "double": True}
    expected = gradient(make_learner(name, **keys, **PADDED), batch)
    assert expected.dtype == torch.float64
    for layout, settings_of_layout in LAYOUTS.items():
        found = gradient(make_learner(name, **keys, **settings_of_layout), batch)
        assert relative(found, expected) < 1e-10, layout


@pytest.mark.parametrize("name", ["qwen3", "llama", "gemma2", "gemma3"])
def test_the_gradient_does_not_depend_on_the_layout_in_float32(make_learner: Make, name: str):
    batch = make_batch(seed=1)
    expected = gradient(make_learner(name, **PADDED), batch)
    for layout, settings_of_layout in LAYOUTS.items():
        assert relative(gradient(make_learner(name, **settings_of_layout), batch), expected) < 1e-5, layout


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
@pytest.mark.usefixtures("true_float64")
def test_the_gradient_does_not_depend_on_the_order_of_completions(make_learner: Make, aggregation: str):
    batch = make_batch(seed=2)
    order = np.random.default_rng(0).permutation(batch.completions)
    place = {int(completion): number for number, completion in enumerate(order)}
    moved = [replace(one, completion=place[one.completion]) for one in batch.sequences]
    other = replace(batch, sequences=sorted(moved, key=lambda one: one.completion))
    keys = {"double": True, "algorithm__aggregation": aggregation, "learner__micro_batch_tokens": 60}
    assert relative(gradient(make_learner(**keys), other), gradient(make_learner(**keys), batch)) < 1e-10


@pytest.mark.usefixtures("true_float64")
def test_skipping_zero_advantages_is_exact_and_leaves_them_in_the_normaliser(make_learner: Make):
    batch = make_batch(seed=3)
    with_all = make_learner(double=True, learner__skip_zero_advantage=False)
    skipping = make_learner(double=True, learner__skip_zero_advantage=True)
    assert relative(gradient(skipping, batch), gradient(with_all, batch)) < 1e-10
    metrics = skipping.train(batch)
    assert metrics["train/completions_measured"] == batch.completions - 2  # of group 1's three, one is measured for all
    assert metrics["train/tokens"] == batch.trained_tokens
    assert with_all.train(batch)["train/completions_measured"] == batch.completions


def test_completions_of_zero_advantage_are_not_skipped_under_an_entropy_term(make_learner: Make):
    batch = make_batch(seed=3)
    metrics = make_learner(algorithm__entropy_coef=0.01).train(batch)
    assert metrics["train/completions_measured"] == batch.completions


@pytest.mark.usefixtures("true_float64")
def test_gradient_checkpointing_gives_the_same_gradient(make_learner: Make):
    batch = make_batch(seed=4)
    plain = make_learner(double=True)
    checkpointed = make_learner(double=True, model__gradient_checkpointing=True)
    assert checkpointed.policy.model.is_gradient_checkpointing
    assert relative(gradient(checkpointed, batch), gradient(plain, batch)) < 1e-10


@pytest.fixture(scope="module")
def scored_layouts(model_folder: Callable[..., Any]) -> dict[str, list[LocalLearner]]:
    """For each architecture and attention a padded, a packed and a prefix-sharing learner with the same weights."""
    learners = {}
    for name, attention in (("qwen3", "sdpa"), ("llama", "eager"), ("gemma2", "eager"), ("gemma3", "sdpa")):
        learners[name] = []
        for layout in (PADDED, LAYOUTS["packed"], LAYOUTS["shared"]):
            cfg = make_config(model_folder(name), model__attention=attention, **layout)
            runtime = resolve_runtime(cfg.runtime, cfg.model)
            learners[name].append(LocalLearner(load_policy(cfg.model, runtime), cfg, runtime, 1))
    return learners


TOKENS = st.integers(2, VOCABULARY - 1)
ALIKE = st.one_of(st.just(2), TOKENS)  # so that completions often begin alike
GROUPS = st.lists(
    st.tuples(st.lists(TOKENS, min_size=1, max_size=12), st.lists(st.lists(ALIKE, max_size=15), max_size=5)),
    min_size=1,
    max_size=3,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(groups=GROUPS, temperature=st.sampled_from([1.0, 0.6]))
def test_packed_logprobs_equal_padded_ones(
    scored_layouts: dict[str, list[LocalLearner]],
    groups: list[tuple[list[int], list[list[int]]]],
    temperature: float,
):
    segments = [
        Segment(context, sampled, [0.0] * len(sampled), [True] * len(sampled))
        for context, completions in groups
        for sampled in completions
    ]
    for name, (padded, *others) in scored_layouts.items():
        expected = padded.logprobs(segments, temperature)
        assert [len(row) for row in expected] == [len(segment.sampled_ids) for segment in segments]
        for other in others:
            for mine, theirs in zip(other.logprobs(segments, temperature), expected, strict=True):
                np.testing.assert_allclose(mine, theirs, atol=1e-5, err_msg=name)


def test_logprobs_are_those_of_the_models_own_logits(make_learner: Make):
    learner = make_learner("gemma2")  # scaled embeddings, soft-capped logits, a sliding window
    context, sampled = [5, 9, 2, 7, 7, 30, 12, 8, 4], [3, 11, 40, 6]
    with torch.no_grad():
        logits = learner.policy.model(torch.tensor([context + sampled])).logits[0]
    expected = (logits / 0.7).log_softmax(-1)[range(8, 12), sampled]
    found = learner.logprobs([Segment(context, sampled, [0.0] * 4, [True] * 4)], temperature=0.7)
    np.testing.assert_allclose(found[0], expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["qwen3", "llama", "gemma3"])
def test_rounding_in_16_bits_is_no_reason_against_packing(make_learner: Any, name: str):
    for keys in ({"model__dtype": "bfloat16"}, {"runtime__mixed_precision": "bf16"}):
        passes = make_learner(name, **keys).passes
        assert passes.packing
        trial = own_samples(passes.policy, passes.runtime, [[5, 6, 7]], 6)
        assert [len(segment.sampled_ids) for segment in trial] == [6]
