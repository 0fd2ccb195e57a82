from math import exp, log, sqrt

import pytest
import torch

from shoal.algorithms.correction import correction_weights
from shoal.algorithms.losses import policy_loss
from shoal.algorithms.terms import TokenTerms
from shoal.config.nodes.algorithm import AlgorithmConfig


def terms_with_mismatch(rho, completion):
    """Tokens whose learner over sampler ratio is `rho`, on policy, A = 1, equal weights."""
    logprobs = torch.full((len(rho),), -1.0, dtype=torch.float64, requires_grad=True)
    return TokenTerms(
        logprobs=logprobs,
        old_logprobs=logprobs.detach(),
        sampler_logprobs=logprobs.detach() - torch.tensor(rho, dtype=torch.float64).log(),
        advantages=torch.ones(len(rho), dtype=torch.float64),
        weights=torch.full((len(rho),), 1 / len(rho), dtype=torch.float64),
        completion=torch.tensor(completion),
        num_completions=max(completion) + 1,
        unit_logprobs=logprobs,
        ref_logprobs=logprobs.detach() - log(2),
    )


@pytest.mark.parametrize(
    ("kind", "average", "expected"),
    [
        # completion 0 has rho 4, 1/4, 1: product 1, mean 1; completion 1 has 3, 3: product 9, mean 3
        ("token_truncate", "product", [2, 0.25, 1, 2, 2]),
        ("token_mask", "product", [0, 0, 1, 0, 0]),
        ("sequence_truncate", "product", [1, 1, 1, 2, 2]),
        ("sequence_mask", "product", [1, 1, 1, 0, 0]),
        ("sequence_truncate", "geometric", [1, 1, 1, 2, 2]),
        ("sequence_mask", "geometric", [1, 1, 1, 0, 0]),
    ],
)
def test_the_weights_of_each_correction(kind, average, expected):
    terms = terms_with_mismatch([4, 0.25, 1, 3, 3], [0, 0, 0, 1, 1])
    weights = correction_weights(terms, AlgorithmConfig(correction=kind, correction_average=average))
    assert weights.tolist() == pytest.approx(expected)


def test_product_and_geometric_mean_differ():
    # rho 1.2 four times: product 2.0736 is above 2, the geometric mean 1.2 is inside the band
    terms = terms_with_mismatch([1.2] * 4, [0] * 4)
    product = AlgorithmConfig(correction="sequence_mask", correction_average="product")
    geometric = AlgorithmConfig(correction="sequence_mask", correction_average="geometric")
    assert correction_weights(terms, product).tolist() == [0] * 4
    assert correction_weights(terms, geometric).tolist() == pytest.approx([1.2] * 4)


def test_sequence_masks_work_per_completion_when_tokens_are_interleaved_in_a_row():
    terms = terms_with_mismatch([9, 1, 9, 1], [0, 1, 0, 1])
    weights = correction_weights(terms, AlgorithmConfig(correction="sequence_mask"))
    assert weights.tolist() == pytest.approx([0, 1, 0, 1])


@pytest.mark.parametrize(("low", "high", "expected"), [(0.5, 2.0, 1.5), (1.6, 2.0, 0.0), (0.5, 1.4, 0.0)])
def test_the_band_has_two_edges(low, high, expected):
    terms = terms_with_mismatch([1.5], [0])
    algorithm = AlgorithmConfig(correction="token_mask", correction_low=low, correction_high=high)
    assert correction_weights(terms, algorithm).item() == pytest.approx(expected)


def test_no_correction_gives_no_weights():
    assert correction_weights(terms_with_mismatch([3.0], [0]), AlgorithmConfig()) is None


def test_a_masked_token_counts_in_the_normaliser():
    # Tokens of rho 9 (masked) and 1: loss -(0 + 1) / 2, not -1
    terms = terms_with_mismatch([9, 1], [0, 1])
    loss, _ = policy_loss(terms, AlgorithmConfig(correction="token_mask"))
    loss.backward()
    assert loss.item() == pytest.approx(-0.5)
    assert terms.logprobs.grad.tolist() == pytest.approx([0, -0.5])


def test_the_correction_multiplies_the_surrogate_and_not_the_kl():
    # d = log 2: k2 = log(2)^2 / 2 on every token, masked or not
    terms = terms_with_mismatch([9, 1], [0, 1])
    algorithm = AlgorithmConfig(correction="token_mask", kl_coef=1.0, kl_estimator="k2")
    _, parts = policy_loss(terms, algorithm)
    assert parts["kl"].item() == pytest.approx(log(2) ** 2 / 2)
    assert parts["policy"].item() == pytest.approx(-0.5)


@pytest.mark.parametrize("kind", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
def test_the_correction_is_a_constant(kind):
    terms = terms_with_mismatch([sqrt(2), 1.0], [0, 1])
    terms.old_logprobs = terms.old_logprobs.clone().requires_grad_()
    assert not correction_weights(terms, AlgorithmConfig(correction=kind)).requires_grad


def test_a_ratio_that_overflows_is_masked_or_capped():
    terms = terms_with_mismatch([exp(100)] * 8, [0] * 8)
    for kind, expected in (("sequence_mask", 0.0), ("sequence_truncate", 2.0)):
        weights = correction_weights(terms, AlgorithmConfig(correction=kind, correction_average="product"))
        assert weights.tolist() == [expected] * 8
