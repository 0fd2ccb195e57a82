from dataclasses import replace
from math import exp, log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.algorithms.losses import policy_loss, zero_advantage_is_free
from shoal.algorithms.surrogates import SURROGATES
from shoal.algorithms.terms import TokenTerms
from shoal.config.nodes.algorithm import AlgorithmConfig

PER_TOKEN = ("logprobs", "old_logprobs", "sampler_logprobs", "advantages", "weights", "unit_logprobs", "ref_logprobs")
LEAVES = ("logprobs", "unit_logprobs", "entropy")


def terms_from_ratios(ratios, advantages, completion, dtype=torch.float64):
    """Tokens with policy ratio w = exp(l - l_old) as given, l = -1, equal weights that sum to 1."""
    logprobs = torch.full((len(ratios),), -1.0, dtype=dtype, requires_grad=True)
    old = -1.0 - torch.tensor(ratios, dtype=dtype).log()
    return TokenTerms(
        logprobs=logprobs,
        old_logprobs=old,
        sampler_logprobs=old,
        advantages=torch.tensor(advantages, dtype=dtype),
        weights=torch.full((len(ratios),), 1 / len(ratios), dtype=dtype),
        completion=torch.tensor(completion),
        num_completions=max(completion) + 1,
        unit_logprobs=logprobs,
    )


def loss_and_gradients(terms, algorithm):
    """The loss and the gradient of every leaf, zeros where nothing arrived."""
    leaves = {name: getattr(terms, name).detach().requires_grad_() for name in LEAVES}
    loss, _ = policy_loss(replace(terms, **leaves), algorithm)
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return loss.detach(), {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True)
    }


def select(terms, completions):
    """The terms of some completions, in the order given, renumbered from 0."""
    positions = torch.cat([torch.nonzero(terms.completion == number).flatten() for number in completions])
    lengths = torch.tensor([int((terms.completion == number).sum()) for number in completions])
    chosen = {name: getattr(terms, name)[positions] for name in (*PER_TOKEN, "entropy")}
    numbers = torch.repeat_interleave(torch.arange(len(completions)), lengths)
    return replace(terms, **chosen, completion=numbers, num_completions=len(completions)), positions


# --- golden values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "slope"),
    [
        (1.0, 1.0, -1.0, -1.0),  # inside: -A w, slope -A w
        (1.0, 3.0, -1.2, 0.0),  # above, good: capped at 1.2, no gradient
        (1.0, 0.5, -0.5, -0.5),  # below, good: not capped, pulls the token back up
        (-1.0, 3.0, 3.0, 3.0),  # above, bad: not capped, pushes the token down at full strength
        (-1.0, 0.5, 0.8, 0.0),  # below, bad: capped at .8, no gradient
    ],
)
def test_clip_caps_only_the_side_that_improves(advantage, ratio, loss, slope):
    terms = terms_from_ratios([ratio], [advantage], [0])
    result, _ = policy_loss(terms, AlgorithmConfig())
    result.backward()
    assert result.item() == pytest.approx(loss, rel=1e-12)
    assert terms.logprobs.grad.item() == pytest.approx(slope, rel=1e-12)


def test_the_two_clip_edges_are_separate():
    # ratios .75 at A = -1 and 1.25 at A = 1: inside (.3, .28), clipped by (.2, .2) to .8 and -1.2
    terms = terms_from_ratios([0.75, 1.25], [-1.0, 1.0], [0, 1])
    assert policy_loss(terms, AlgorithmConfig(clip_low=0.3, clip_high=0.28))[0].item() == pytest.approx(-0.25)
    assert policy_loss(terms, AlgorithmConfig())[0].item() == pytest.approx((0.8 - 1.2) / 2)


@pytest.mark.parametrize("advantage", [2.0, -2.0])
@pytest.mark.parametrize(("ratio", "weight"), [(0.01, 0.01), (1.0, 1.0), (5.0, 5.0), (50.0, 5.0)])
def test_cispo_keeps_the_log_prob_gradient_of_clipped_tokens(advantage, ratio, weight):
    # d/dl of -sg(min(w, 1 + 4)) A l is -min(w, 5) A: never 0, whatever the side
    terms = terms_from_ratios([ratio], [advantage], [0])
    result, _ = policy_loss(terms, AlgorithmConfig(surrogate="cispo", clip_high=4.0))
    result.backward()
    assert result.item() == pytest.approx(weight * advantage, rel=1e-12)  # l = -1
    assert terms.logprobs.grad.item() == pytest.approx(-weight * advantage, rel=1e-12)


def test_gspo_uses_the_geometric_mean_of_a_completions_ratios():
    # Completion 0: ratios 2, 1/2, 1 -> s = 1, and completion 1: ratio e -> s = e > 1.2, clipped since A > 0.
    # Weights 1/4 each: (3 x -1 + -1.2) / 4. Gradient of s in each of its 3 tokens: s/3, times 3 tokens: -A/4 each.
    terms = terms_from_ratios([2.0, 0.5, 1.0, exp(1)], [1.0, 1.0, 1.0, 1.0], [0, 0, 0, 1])
    result, _ = policy_loss(terms, AlgorithmConfig(surrogate="gspo"))
    result.backward()
    assert result.item() == pytest.approx(-(3 + 1.2) / 4, rel=1e-12)
    assert terms.logprobs.grad.tolist() == pytest.approx([-0.25] * 3 + [0], rel=1e-12)


def test_gspo_sees_completions_and_not_rows_or_neighbours():
    # Tokens of two completions interleaved, as segments of a packed row can be
    terms = terms_from_ratios([4.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0, 1, 0, 1])
    ratio = SURROGATES["gspo"](terms, AlgorithmConfig()).ratio
    assert ratio.tolist() == pytest.approx([2.0, 1.0, 2.0, 1.0])


@pytest.mark.parametrize("surrogate", sorted(SURROGATES))
def test_on_policy_every_surrogate_has_the_policy_gradient(surrogate):
    # w = 1: the gradient is -weight x A per token (for gspo spread evenly, which is the same within a completion)
    terms = terms_from_ratios([1.0] * 4, [0.5, 0.5, -2.0, -2.0], [0, 0, 1, 1])
    policy_loss(terms, AlgorithmConfig(surrogate=surrogate))[0].backward()
    assert terms.logprobs.grad.tolist() == pytest.approx([-0.125, -0.125, 0.5, 0.5], rel=1e-12)


def test_the_sampler_kl_is_k3_against_the_sampler():
    # l - l_gen = log 2: exp(-d) - 1 + d = log 2 - 1/2; slope 1 - exp(-d) = 1/2
    sampler_logprobs = torch.tensor([-1 - log(2)], dtype=torch.float64)
    terms = replace(terms_from_ratios([1.0], [0.0], [0]), sampler_logprobs=sampler_logprobs)
    loss, parts = policy_loss(terms, AlgorithmConfig(sampler_kl_coef=10.0))
    loss.backward()
    assert parts["sampler_kl"].item() == pytest.approx(10 * (log(2) - 0.5), rel=1e-12)
    assert terms.logprobs.grad.item() == pytest.approx(5.0, rel=1e-12)


def test_the_entropy_bonus_lowers_the_loss():
    entropy = torch.tensor([0.5, 1.5], dtype=torch.float64, requires_grad=True)
    terms = replace(terms_from_ratios([1.0, 1.0], [0.0, 0.0], [0, 1]), entropy=entropy)
    loss, parts = policy_loss(terms, AlgorithmConfig(entropy_coef=0.1))
    loss.backward()
    assert loss.item() == parts["entropy"].item() == pytest.approx(-0.1)
    assert entropy.grad.tolist() == pytest.approx([-0.05, -0.05])


@pytest.mark.parametrize("surrogate", sorted(SURROGATES))
def test_the_parts_add_up_to_the_loss(surrogate, make_terms, make_config):
    loss, parts = policy_loss(make_terms(3, [4, 1, 6]), make_config(surrogate=surrogate))
    assert set(parts) == {"policy", "kl", "sampler_kl", "entropy"}
    assert sum(part.item() for part in parts.values()) == pytest.approx(loss.item(), rel=1e-12)
    assert loss.requires_grad and not any(part.requires_grad for part in parts.values())


def test_terms_that_are_switched_off_are_not_in_the_parts(make_terms):
    assert set(policy_loss(make_terms(0, [2]), AlgorithmConfig())[1]) == {"policy"}
    in_reward = AlgorithmConfig(kl_coef=0.1, kl_in="reward")
    assert set(policy_loss(make_terms(0, [2]), in_reward)[1]) == {"policy"}


@pytest.mark.parametrize(
    ("missing", "option"), [("ref_logprobs", {"kl_coef": 0.1}), ("entropy", {"entropy_coef": 0.1})]
)
def test_a_term_whose_input_is_missing_is_refused(missing, option, make_terms):
    terms = replace(make_terms(0, [2, 3]), **{missing: None})
    with pytest.raises(ValueError, match=missing.split("_")[0]):
        policy_loss(terms, AlgorithmConfig(**option))


def test_a_micro_batch_without_tokens_adds_nothing():
    empty = torch.zeros(0)
    terms = TokenTerms(empty, empty, empty, empty, empty, empty.long(), 0, empty)
    assert policy_loss(terms, AlgorithmConfig())[0].item() == 0


# --- invariants ----------------------------------------------------------------------------------------------------

configurations = st.fixed_dictionaries(
    {
        "surrogate": st.sampled_from(sorted(SURROGATES)),
        "kl_estimator": st.sampled_from(["k2", "k3", "k4"]),
        "correction": st.sampled_from(["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]),
        "correction_average": st.sampled_from(["product", "geometric"]),
        "correction_high": st.sampled_from([1.1, 2.0]),
    }
)
completion_lengths = st.lists(st.integers(1, 7), min_size=2, max_size=6)


@given(configurations, completion_lengths, st.integers(0, 2**31), st.data())
def test_loss_and_gradient_do_not_depend_on_order_or_micro_batches(
    make_terms, make_config, options, lengths, seed, data
):
    algorithm = make_config(**options)
    terms = make_terms(seed, lengths, data.draw(st.sampled_from(["token", "sequence", "constant"])))
    whole_loss, whole = loss_and_gradients(terms, algorithm)
    order = data.draw(st.permutations(range(len(lengths))))
    cut = data.draw(st.integers(1, len(lengths) - 1))
    loss = torch.zeros((), dtype=torch.float64)
    summed = {name: torch.zeros_like(gradient) for name, gradient in whole.items()}
    for completions in (order[:cut], order[cut:]):
        part, positions = select(terms, completions)
        part_loss, gradients = loss_and_gradients(part, algorithm)
        loss += part_loss
        for name, gradient in gradients.items():
            summed[name][positions] += gradient
    torch.testing.assert_close(loss, whole_loss, rtol=1e-10, atol=1e-12)
    for name, gradient in whole.items():
        torch.testing.assert_close(summed[name], gradient, rtol=1e-10, atol=1e-12)


@given(configurations, completion_lengths, st.integers(0, 2**31))
def test_completions_of_zero_advantage_have_exactly_no_gradient(make_terms, options, lengths, seed):
    terms = make_terms(seed, lengths)
    silent = terms.completion == 0
    terms = replace(terms, advantages=torch.where(silent, 0.0, terms.advantages))
    algorithm = AlgorithmConfig(**options)
    assert zero_advantage_is_free(algorithm)
    loss, gradients = loss_and_gradients(terms, algorithm)
    assert all((gradient[silent] == 0).all() for gradient in gradients.values())
    without, _ = select(terms, range(1, len(lengths)))
    skipped_loss, skipped = loss_and_gradients(without, algorithm)
    torch.testing.assert_close(loss, skipped_loss, rtol=1e-12, atol=1e-14)
    assert torch.equal(gradients["logprobs"][~silent], skipped["logprobs"])


@pytest.mark.parametrize("option", [{"kl_coef": 0.1}, {"sampler_kl_coef": 0.1}, {"entropy_coef": 0.1}])
def test_zero_advantage_is_not_free_where_another_term_acts(option, make_terms):
    algorithm = AlgorithmConfig(**option)
    assert not zero_advantage_is_free(algorithm)
    terms = make_terms(0, [3, 2])
    _, gradients = loss_and_gradients(replace(terms, advantages=torch.zeros_like(terms.advantages)), algorithm)
    assert any(gradient.abs().max() > 1e-6 for gradient in gradients.values())


def test_zero_advantage_is_free_where_the_kl_is_in_the_reward():
    assert zero_advantage_is_free(AlgorithmConfig(kl_coef=0.1, kl_in="reward"))


@given(configurations, st.integers(0, 2**31))
def test_the_gradient_is_the_derivative_of_the_loss(make_terms, make_config, options, seed):
    # Central differences; CISPO's weight is a constant by definition, so its loss has another derivative.
    if options["surrogate"] == "cispo":
        options = {**options, "surrogate": "clip"}
    algorithm = make_config(**options)
    terms = make_terms(seed, [3, 2], spread=0.1)
    _, gradients = loss_and_gradients(terms, algorithm)
    direction = torch.randn(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    step = 1e-6
    ends = [replace(terms, logprobs=terms.logprobs.detach() + sign * step * direction) for sign in (1, -1)]
    above, below = (policy_loss(end, algorithm)[0].item() for end in ends)
    slope = (gradients["logprobs"] @ direction).item()
    assert (above - below) / (2 * step) == pytest.approx(slope, rel=1e-4, abs=1e-7)
