"""Losses, gradients and diagnostics against torchrl 0.14.1's `GRPOLoss` and `MCAdvantage`, fed with random logits.

Compared: the clip surrogate in both means (token_mean, prompt_mean) with holes in the mask, the entropy bonus, the two
k3 KL terms, the effective sample size, and advantages with the sample deviation.

Where torchrl computes something else, it is no oracle:
- Both KL terms are means over all B x T positions, masked ones included as zeros; they are compared without masked
  positions, where that is right. `clip_fraction` too, and it counts ratios outside the band whatever the advantage's
  sign, so it is not compared.
- `CISPOLoss` lets the gradient through the clip and has no log-prob: every clipped token loses its gradient. The paper
  keeps it, and so does Shoal.
- `MCAdvantage` divides by max(std, 1e-6); with eps = 0 that is Shoal's wherever rewards differ.
- Micro-batch means are averaged over an accumulation window; one micro-batch is compared.
"""

import pytest
import torch

from shoal.algorithms.advantages import group_advantages
from shoal.algorithms.losses import policy_loss
from shoal.algorithms.measures import Measures
from shoal.algorithms.terms import TokenTerms
from shoal.config.nodes.algorithm import AlgorithmConfig

pytest.importorskip("torchrl", reason="torchrl is the oracle; it comes with the `bench` extra")
from tensordict import TensorDict
from torchrl.modules.distributions import LLMMaskedCategorical
from torchrl.objectives.llm import GRPOLoss, MCAdvantage

pytestmark = pytest.mark.extras

SEEDS = range(5)
ROWS, COLUMNS, VOCABULARY = 4, 6, 5


class Case:
    """Random logits [ROWS, COLUMNS, VOCABULARY] with their tokens, old log-probs, reference and advantages."""

    def __init__(self, seed: int, *, holes: bool) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = (ROWS, COLUMNS)
        self.logits = torch.randn(*shape, VOCABULARY, generator=generator, dtype=torch.float64).requires_grad_()
        self.tokens = torch.randint(VOCABULARY, shape, generator=generator)
        self.mask = torch.rand(shape, generator=generator) < (0.6 if holes else 2.0)
        self.mask[:, seed % COLUMNS] = True
        noise = torch.randn(2, *shape, generator=generator, dtype=torch.float64) * 0.4
        self.old, self.reference = self.token_logprobs().detach() + noise
        self.advantages = torch.randn(ROWS, generator=generator, dtype=torch.float64)

    def token_logprobs(self) -> torch.Tensor:
        return self.logits.log_softmax(-1).gather(-1, self.tokens[..., None])[..., 0]

    def terms(self, aggregation: str) -> TokenTerms:
        counts = self.mask.sum(1)
        completion = torch.repeat_interleave(torch.arange(ROWS), counts)
        logs = self.logits.log_softmax(-1)
        logprobs = self.token_logprobs()[self.mask]
        each = torch.full((ROWS,), 1 / counts.sum().item(), dtype=torch.float64)
        return TokenTerms(
            logprobs=logprobs,
            old_logprobs=self.old[self.mask],
            sampler_logprobs=self.old[self.mask],
            advantages=self.advantages[completion],
            weights=(each if aggregation == "token" else 1 / (ROWS * counts.double()))[completion],
            completion=completion,
            num_completions=ROWS,
            unit_logprobs=logprobs,
            ref_logprobs=self.reference[self.mask],
            entropy=-(logs.exp() * logs).sum(-1)[self.mask],
        )

    def torchrl(self, **options):
        """The loss terms of torchrl by name. The case itself plays the actor."""
        data = TensorDict(
            {
                "tokens": TensorDict({"full": self.tokens}, [ROWS]),
                "log_probs": TensorDict({"full": self.old}, [ROWS]),
                "next": TensorDict({"ref_log_probs": TensorDict({"full": self.reference}, [ROWS])}, [ROWS]),
                "advantage": self.advantages[:, None, None].expand(ROWS, COLUMNS, 1),
            },
            [ROWS],
        )
        return GRPOLoss(self, masking_strategy="generic", **options)(data)

    def get_dist(self, *_, **__) -> LLMMaskedCategorical:
        return LLMMaskedCategorical(logits=self.logits, mask=self.mask)


def assert_equal(case: Case, expected: torch.Tensor, algorithm: AlgorithmConfig) -> None:
    got, _ = policy_loss(case.terms(algorithm.aggregation), algorithm)
    torch.testing.assert_close(got, expected.squeeze(), rtol=1e-6, atol=1e-9)
    ours, theirs = (torch.autograd.grad(loss, case.logits)[0] for loss in (got, expected.squeeze()))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    assert ours.abs().max() > 1e-3 and ours[~case.mask].abs().sum() == 0


@pytest.mark.parametrize(("mean", "aggregation"), [("token_mean", "token"), ("prompt_mean", "sequence")])
@pytest.mark.parametrize("epsilon", [(0.2, 0.2), (0.2, 0.28)])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_clip_surrogate_and_the_entropy_bonus_equal_torchrl(seed, epsilon, mean, aggregation):
    case = Case(seed, holes=True)
    theirs = case.torchrl(clip_epsilon=epsilon, aggregation=mean, entropy_coeff=0.3)
    algorithm = AlgorithmConfig(clip_low=epsilon[0], clip_high=epsilon[1], aggregation=aggregation, entropy_coef=0.3)
    assert_equal(case, theirs.loss_objective + theirs.loss_entropy, algorithm)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_kl_to_the_reference_equals_torchrl_where_nothing_is_masked(seed):
    case = Case(seed, holes=False)
    theirs = case.torchrl(kl_to_ref_coeff=0.7, entropy_bonus=False)
    algorithm = AlgorithmConfig(aggregation="token", kl_coef=0.7, kl_estimator="k3")
    assert_equal(case, theirs.loss_objective + theirs.loss_kl_to_ref, algorithm)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_kl_to_the_sampler_equals_torchrl_where_nothing_is_masked(seed):
    case = Case(seed, holes=False)
    theirs = case.torchrl(kl_to_inference_coeff=0.7, entropy_bonus=False)
    algorithm = AlgorithmConfig(aggregation="token", sampler_kl_coef=0.7)
    assert_equal(case, theirs.loss_objective + theirs.loss_kl_to_inference, algorithm)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_effective_sample_size_and_the_entropy_equal_torchrl(seed):
    # torchrl's weight is learner over sampler, Shoal's rho with l_old = l
    case = Case(seed, holes=True)
    terms = case.terms("token")
    terms.old_logprobs = terms.logprobs.detach()
    measures = Measures()
    measures.add(terms, policy_loss(terms, AlgorithmConfig())[1], AlgorithmConfig())
    theirs = case.torchrl(entropy_coeff=1.0)
    assert measures.metrics()["sampler/ess"] == pytest.approx(theirs.ESS.item(), rel=1e-9)
    assert measures.metrics()["policy/entropy"] == pytest.approx(-theirs.loss_entropy.item(), rel=1e-9)


@pytest.mark.parametrize("size", [2, 3, 8, 16])
@pytest.mark.parametrize("seed", SEEDS)
def test_advantages_with_the_sample_deviation_equal_torchrl(seed, size):
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.rand(size, generator=generator, dtype=torch.float64)
    transform = MCAdvantage(grpo_size=size)
    for index, reward in enumerate(rewards):
        trajectory = TensorDict(
            {
                "query": torch.tensor([[seed]]),
                "next": TensorDict({"reward": reward.reshape(1, 1), "done": torch.ones(1, 1, dtype=torch.bool)}, [1]),
            },
            [1],
        )
        group = transform.inv(trajectory)
        assert (group is None) == (index < size - 1)
    got = group_advantages(rewards.tolist(), AlgorithmConfig(std="sample", eps=0))
    assert got == pytest.approx(group["advantage"].flatten().tolist(), rel=1e-6)
