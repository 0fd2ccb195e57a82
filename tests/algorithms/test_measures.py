from dataclasses import replace
from math import exp, log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.algorithms.losses import policy_loss
from shoal.algorithms.measures import Measures
from shoal.algorithms.terms import TokenTerms
from shoal.config.nodes.algorithm import AlgorithmConfig


def measured(terms, algorithm, **arguments):
    measures = Measures(**arguments)
    measures.add(terms, policy_loss(terms, algorithm)[1], algorithm)
    return measures


@pytest.fixture
def terms():
    """Three tokens of two completions: ratios 2, 1/2, 1; sampler ratios rho 1, 1, 4; reference log(2) below."""
    logprobs = torch.full((3,), -1.0, dtype=torch.float64)
    old = logprobs - torch.tensor([2.0, 0.5, 1.0], dtype=torch.float64).log()
    return TokenTerms(
        logprobs=logprobs,
        old_logprobs=old,
        sampler_logprobs=old - torch.tensor([1.0, 1.0, 4.0], dtype=torch.float64).log(),
        advantages=torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64),
        weights=torch.full((3,), 1 / 3, dtype=torch.float64),
        completion=torch.tensor([0, 0, 1]),
        num_completions=2,
        unit_logprobs=logprobs,
        ref_logprobs=logprobs - log(2),
        entropy=torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64),
    )


def test_the_measures_have_these_values(terms):
    got = measured(terms, AlgorithmConfig(correction="token_truncate", kl_coef=0.5)).metrics()
    d = log(2)
    # policy: clip gives -1.2, .8 and -1 x min(4, 2); ESS = (1 + 1 + 4)^2 / (3 (1 + 1 + 16))
    # sampler KL: d = l_gen - l_old = 0, 0, -log 4, so k1 = -log 4 / 3 and k3 = (exp(log 4) - 1 - log 4) / 3
    expected = {
        "loss/policy": (-1.2 + 0.8 - 2) / 3,
        "loss/kl": 0.5 * (d - 0.5),
        "loss/total": (-1.2 + 0.8 - 2) / 3 + 0.5 * (d - 0.5),
        "policy/clip_fraction": 2 / 3,
        "policy/clip_fraction_low": 1 / 3,
        "policy/clip_fraction_high": 1 / 3,
        "policy/ratio_mean": 3.5 / 3,
        "policy/ratio_min": 0.5,
        "policy/ratio_max": 2,
        "policy/entropy": 1,
        "kl_ref/k1": d,
        "kl_ref/k2": d * d / 2,
        "kl_ref/k3": d - 0.5,
        "kl_ref/k4": 3.5 / 3 * d,
        "sampler/abs_difference": log(4) / 3,
        "sampler/abs_difference_max": log(4),
        "sampler/kl_k1": -log(4) / 3,
        "sampler/kl_k3": (3 - log(4)) / 3,
        "sampler/ess": 36 / 54,
        "sampler/corrected_fraction": 1 / 3,
        "train/tokens_measured": 3,
        "train/completions_measured": 2,
    }
    assert {name: got[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    assert set(got) - set(expected) == {"loss/sampler_kl", "loss/entropy"}


def test_tokens_of_zero_advantage_are_never_clipped_but_are_in_the_denominator(terms):
    terms = replace(terms, advantages=torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64), ref_logprobs=None)
    for surrogate in ("clip", "cispo"):
        assert measured(terms, AlgorithmConfig(surrogate=surrogate)).metrics()["policy/clip_fraction"] == 0
    high = replace(terms, advantages=torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64))
    assert measured(high, AlgorithmConfig(surrogate="cispo")).metrics()["policy/clip_fraction_high"] == 1 / 3


def test_the_ratio_of_gspo_is_the_sequences(terms):
    got = measured(terms, AlgorithmConfig(surrogate="gspo")).metrics()
    assert (got["policy/ratio_min"], got["policy/ratio_max"]) == pytest.approx((1, 1))


def test_what_was_not_computed_is_absent(terms):
    got = measured(replace(terms, ref_logprobs=None, entropy=None), AlgorithmConfig()).metrics()
    assert not [name for name in got if name.startswith("kl_ref") or name == "policy/entropy"]


def test_the_mismatch_is_measured_also_where_the_samplers_log_probs_are_the_old_ones(terms):
    # l_old = l_gen; the learner's l is log 2 above it on one token of three
    sampler = terms.logprobs - torch.tensor([log(2), 0.0, 0.0], dtype=torch.float64)
    terms = replace(terms, old_logprobs=sampler, sampler_logprobs=sampler)
    got = measured(terms, AlgorithmConfig(old_logprobs="sampler")).metrics()
    assert got["sampler/abs_difference"] == pytest.approx(log(2) / 3)


def test_nothing_measured_gives_no_metrics():
    assert Measures().metrics() == {}


def test_losses_are_averaged_over_optimizer_steps_and_diagnostics_over_tokens(terms):
    algorithm = AlgorithmConfig()
    once, twice = measured(terms, algorithm), measured(terms, algorithm, optimizer_steps=2)
    twice.add(terms, policy_loss(terms, algorithm)[1], algorithm)
    counts = {"train/tokens_measured", "train/completions_measured"}
    for name, value in once.metrics().items():
        assert twice.metrics()[name] == pytest.approx(value * (2 if name in counts else 1)), name


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_merged_ranks_give_what_one_rank_gives(make_terms, make_config, left, right):
    algorithm = make_config()
    together, first, second = Measures(), Measures(), Measures()
    for seed, (lengths, rank) in enumerate([(left, first), (right, second)]):
        terms = make_terms(seed, lengths)
        parts = policy_loss(terms, algorithm)[1]
        rank.add(terms, parts, algorithm)
        together.add(terms, parts, algorithm)
    idle = Measures()
    first.merge(second.state())
    first.merge(idle.state())
    assert first.metrics() == pytest.approx(together.metrics(), rel=1e-12)
    idle.merge(first.state())
    assert idle.metrics() == first.metrics()


def test_the_mean_of_k3_under_the_samplers_tokens_is_the_kl_to_the_learner():
    # Weighted by the sampler's probabilities 1/2, 1/4, 1/4 as tokens 1, 1, 2, 3 of a vocabulary of three
    sampler = torch.tensor([0.5, 0.5, 0.25, 0.25], dtype=torch.float64).log()
    learner = torch.tensor([0.25, 0.25, 0.25, 0.5], dtype=torch.float64).log()
    ones = torch.ones(4, dtype=torch.float64)
    terms = TokenTerms(learner, learner, sampler, ones, ones / 4, torch.zeros(4, dtype=torch.long), 1, learner)
    # sum p log(p / q) = 1/2 log 2 + 0 + 1/4 log 1/2
    got = measured(terms, AlgorithmConfig()).metrics()
    assert got["sampler/kl_k1"] == pytest.approx(0.25 * log(2))
    assert got["sampler/kl_k3"] == pytest.approx(0.25 * log(2))


def test_huge_mismatches_stay_finite_in_float32():
    zeros = torch.zeros(2)
    terms = TokenTerms(
        zeros, zeros, zeros - torch.tensor([500.0, 0.0]), zeros + 1, zeros + 0.5, torch.tensor([0, 1]), 2, zeros
    )
    got = measured(terms, AlgorithmConfig(correction="token_mask")).metrics()
    assert got["sampler/abs_difference_max"] == 40
    assert got["sampler/ess"] == pytest.approx(0.5)
    assert got["sampler/kl_k3"] == pytest.approx(exp(40) / 2, rel=1e-4)
