from math import exp, log

import pytest
import torch

from shoal.algorithms.kl import ESTIMATORS, k3, log_ratio, reward_kl
from shoal.algorithms.losses import policy_loss


def test_the_estimators_have_these_values():
    # policy 1/2, other 1/4: d = log 2 = .693147; k2 = d^2/2; k3 = 1/2 - 1 + d; k4 with w = 3
    d = log_ratio(torch.tensor(0.5).double().log(), torch.tensor(0.25).double().log())
    got = {name: estimator(d, torch.tensor(3.0)).item() for name, estimator in ESTIMATORS.items()}
    assert got == pytest.approx({"k1": log(2), "k2": log(2) ** 2 / 2, "k3": log(2) - 0.5, "k4": 3 * log(2)})


def test_log_ratios_are_clamped_so_that_a_single_token_cannot_overflow():
    d = log_ratio(torch.tensor([0.0, -1000.0]), torch.tensor([-1000.0, 0.0]))
    assert d.tolist() == [40, -40]
    assert k3(d, torch.ones(2)).tolist() == pytest.approx([39, exp(40) - 1 - 40])


def test_k3_is_accurate_where_the_models_nearly_agree():
    # exp(-d) - 1 + d = d^2/2 - d^3/6 + ...; formed as exp(-d) - 1 in float32 all digits would be lost
    assert k3(torch.tensor(1e-3), torch.tensor(1.0)).item() == pytest.approx(1e-6 / 2, rel=1e-3)


def exact_expectation(estimator, logits, ref_logits):
    """Sum over a vocabulary of sg(policy) x estimate: mean value and mean gradient without sampling."""
    logprobs, ref = logits.log_softmax(0), ref_logits.log_softmax(0)
    ratio = (logprobs - logprobs.detach()).exp()
    mean = (logprobs.detach().exp() * estimator(log_ratio(logprobs, ref), ratio)).sum()
    return mean.item(), torch.autograd.grad(mean, logits)[0]


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    return policy.requires_grad_(), reference


def kl(left, right):
    return (left.softmax(0) * (left.log_softmax(0) - right.log_softmax(0))).sum()


@pytest.mark.parametrize("name", ["k1", "k3", "k4"])
def test_the_mean_of_an_unbiased_estimator_is_the_kl(name, logits):
    policy, reference = logits
    value, _ = exact_expectation(ESTIMATORS[name], policy, reference)
    assert value == pytest.approx(kl(policy, reference).item(), rel=1e-12)


@pytest.mark.parametrize("name", ["k2", "k4"])
def test_the_mean_gradient_of_k2_and_k4_is_the_gradient_of_the_kl(name, logits):
    policy, reference = logits
    _, gradient = exact_expectation(ESTIMATORS[name], policy, reference)
    torch.testing.assert_close(gradient, torch.autograd.grad(kl(policy, reference), policy)[0], rtol=1e-12, atol=1e-14)


def test_the_mean_gradient_of_k3_is_that_of_the_reverse_divergence(logits):
    # d k3 = (1 - exp(-d)) dl, whose mean is -sum ref dl = d KL(ref || policy)
    policy, reference = logits
    _, gradient = exact_expectation(ESTIMATORS["k3"], policy, reference)
    torch.testing.assert_close(gradient, torch.autograd.grad(kl(reference, policy), policy)[0], rtol=1e-12, atol=1e-14)


def test_the_mean_gradient_of_k1_is_zero_which_is_why_the_loss_refuses_it(logits, make_terms, make_config):
    _, gradient = exact_expectation(ESTIMATORS["k1"], *logits)
    assert gradient.abs().max() < 1e-15
    with pytest.raises(ValueError, match="k1"):
        policy_loss(make_terms(0, [2]), make_config(kl_estimator="k1"))


def test_the_kl_compares_the_models_at_temperature_one(make_terms, make_config):
    # unit_logprobs, not logprobs, meet the reference; only k4's ratio is at the sampling temperature
    terms, algorithm = make_terms(0, [3, 2]), make_config(kl_estimator="k3", entropy_coef=0, sampler_kl_coef=0)
    _, parts = policy_loss(terms, algorithm)
    d = (terms.unit_logprobs - terms.ref_logprobs).detach()
    assert parts["kl"].item() == pytest.approx(0.3 * (torch.exp(-d) - 1 + d).mean().item(), rel=1e-12)


def test_the_gradient_of_k4_runs_through_the_ratio(make_terms, make_config):
    terms, algorithm = make_terms(0, [3, 2]), make_config(kl_estimator="k4", entropy_coef=0, sampler_kl_coef=0)
    terms.advantages = torch.zeros(5, dtype=torch.float64)
    policy_loss(terms, algorithm)[0].backward()
    w = (terms.logprobs - terms.old_logprobs).detach().exp()
    d = (terms.unit_logprobs - terms.ref_logprobs).detach()
    torch.testing.assert_close(terms.logprobs.grad, 0.3 * w * d / 5)
    torch.testing.assert_close(terms.unit_logprobs.grad, 0.3 * w / 5)


def test_the_kl_in_the_reward_sums_k1_over_trained_tokens():
    # (-1 + 2) + (-3 + 2.5); the middle token is not trained
    assert reward_kl([-1.0, -5.0, -3.0], [-2.0, -1.0, -2.5], [True, False, True]) == 0.5
