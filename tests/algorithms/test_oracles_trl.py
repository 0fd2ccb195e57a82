"""Losses, gradients and diagnostics against TRL 1.16's `GRPOTrainer._compute_loss`, called with given log-probs.

Compared: the loss types grpo, bnpo, dapo, dr_grpo and cispo, the sequence ratio (GSPO), the k3 KL, the entropy bonus
of the token means, the correction of the sampler mismatch, and the clip fraction, KL and entropy that are logged.

Where TRL computes something else on purpose or by mistake, it is no oracle:
- With several micro-batches per optimizer step, bnpo averages the micro-batches' means: a token's weight then depends
  on its neighbours. Here one micro-batch is compared, where both agree.
- The entropy bonus is a mean over tokens whatever the loss type; Shoal's has the normaliser of the aggregation.
- `use_bias_correction_kl` multiplies k3 with the ratio. Shoal has k4 instead.
- The clip fraction of cispo counts positive advantages only, although negative ones are capped in the same way.
- With the sequence ratio, the clip fraction is a mean over completions; Shoal's denominator is trained tokens.
- `delta`, sapo, vespo, luspo and the top-entropy mask have no counterpart.
"""

from collections import defaultdict
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from shoal.algorithms.losses import policy_loss
from shoal.algorithms.measures import Measures
from shoal.algorithms.terms import TokenTerms
from shoal.config import load_config
from shoal.config.nodes.algorithm import AlgorithmConfig

pytest.importorskip("trl", reason="TRL is the oracle; it comes with the `bench` extra")
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

pytestmark = pytest.mark.extras

SEEDS = range(4)
ROWS, COLUMNS = 5, 7

# loss type, importance sampling level -> surrogate, aggregation
COUNTERPARTS = [
    ("grpo", "token", "clip", "sequence"),
    ("bnpo", "token", "clip", "token"),
    ("dapo", "token", "clip", "token"),
    ("dr_grpo", "token", "clip", "constant"),
    ("cispo", "token", "cispo", "token"),
    ("grpo", "sequence", "gspo", "sequence"),
    ("dapo", "sequence", "gspo", "token"),
    ("dr_grpo", "sequence", "gspo", "constant"),
]


@dataclass
class Grid:
    """Rows of completions, [ROWS, COLUMNS], with random trained tokens; padding holds numbers that must not matter."""

    mask: torch.Tensor
    logprobs: torch.Tensor
    old: torch.Tensor
    sampler: torch.Tensor
    reference: torch.Tensor
    entropy: torch.Tensor
    advantages: torch.Tensor

    @classmethod
    def random(cls, seed: int) -> "Grid":
        generator = torch.Generator().manual_seed(seed)
        mask = torch.rand(ROWS, COLUMNS, generator=generator) < 0.6
        mask[:, seed % COLUMNS] = True
        logprobs, *others = torch.randn(5, ROWS, COLUMNS, generator=generator, dtype=torch.float64)
        old, sampler, reference = (logprobs - 2 + 0.4 * noise for noise in others[:3])
        return cls(
            mask=mask,
            logprobs=(logprobs - 2).requires_grad_(),
            old=old,
            sampler=sampler,
            reference=reference,
            entropy=others[3].abs().requires_grad_(),
            advantages=torch.randn(ROWS, generator=generator, dtype=torch.float64),
        )

    def terms(self, aggregation: str) -> TokenTerms:
        tokens = self.mask.sum(1)
        completion = torch.repeat_interleave(torch.arange(ROWS), tokens)
        weights = {
            "token": torch.full((ROWS,), 1 / tokens.sum().item(), dtype=torch.float64),
            "sequence": 1 / (ROWS * tokens.double()),
            "constant": torch.full((ROWS,), 1 / (ROWS * COLUMNS), dtype=torch.float64),
        }[aggregation]
        logprobs = self.logprobs[self.mask]
        return TokenTerms(
            logprobs=logprobs,
            old_logprobs=self.old[self.mask],
            sampler_logprobs=self.sampler[self.mask],
            advantages=self.advantages[completion],
            weights=weights[completion],
            completion=completion,
            num_completions=ROWS,
            unit_logprobs=logprobs,
            ref_logprobs=self.reference[self.mask],
            entropy=self.entropy[self.mask],
        )

    def gradients(self, loss: torch.Tensor) -> list[torch.Tensor]:
        leaves = [self.logprobs, self.entropy]
        found = torch.autograd.grad(loss, leaves, allow_unused=True, retain_graph=True)
        return [torch.zeros_like(leaf) if one is None else one for leaf, one in zip(leaves, found, strict=True)]


def trl_loss(grid, algorithm, loss_type, level, correction=None):
    """TRL's loss of the grid as one micro-batch, and what it logged."""
    trainer = SimpleNamespace(
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        accelerator=SimpleNamespace(
            num_processes=1, sync_gradients=True, reduce=lambda tensor, reduction: tensor, gather=lambda tensor: tensor
        ),
        model=SimpleNamespace(training=True),
        loss_type=loss_type,
        importance_sampling_level=level,
        epsilon_low=algorithm.clip_low,
        # For cispo TRL's epsilon_high is the cap itself, for the others what is added to 1
        epsilon_high=algorithm.clip_high + (loss_type == "cispo"),
        beta=algorithm.kl_coef,
        max_completion_length=COLUMNS,
        current_gradient_accumulation_steps=1,
        use_vllm=correction is not None,
        vllm_importance_sampling_correction=correction is not None,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        aux_loss_enabled=False,
        use_adaptive_entropy=False,
        entropy_coef=algorithm.entropy_coef,
        _entropy_bonus_enabled=algorithm.entropy_coef > 0,
        _get_per_token_logps_and_entropies=lambda *_, **__: (grid.logprobs, grid.entropy, None),
        _metrics={"train": defaultdict(list)},
    )
    ids = torch.zeros(ROWS, COLUMNS, dtype=torch.long)
    inputs = {
        "prompt_ids": ids,
        "prompt_mask": ids,
        "completion_ids": ids,
        "completion_mask": torch.ones_like(ids),
        "tool_mask": grid.mask.long(),
        "advantages": grid.advantages,
        "old_per_token_logps": grid.old,
        "ref_per_token_logps": grid.reference,
        "importance_sampling_ratio": correction,
        "num_items_in_batch": grid.mask.sum(),
    }
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    return loss, {name: values[-1] for name, values in trainer._metrics["train"].items()}


def assert_equal_losses(grid, algorithm, loss_type, level, correction=None):
    expected, _ = trl_loss(grid, algorithm, loss_type, level, correction)
    got, _ = policy_loss(grid.terms(algorithm.aggregation), algorithm)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)
    for ours, theirs in zip(grid.gradients(got), grid.gradients(expected), strict=True):
        assert theirs[~grid.mask].abs().max() == 0
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    assert grid.gradients(got)[0].abs().max() > 1e-3


@pytest.mark.parametrize("kl_coef", [0.0, 0.7])
@pytest.mark.parametrize(("loss_type", "level", "surrogate", "aggregation"), COUNTERPARTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_loss_and_gradient_equal_trl(seed, loss_type, level, surrogate, aggregation, kl_coef):
    algorithm = AlgorithmConfig(
        surrogate=surrogate, aggregation=aggregation, clip_low=0.2, clip_high=0.28, kl_coef=kl_coef
    )
    assert_equal_losses(Grid.random(seed), algorithm, loss_type, level)


@pytest.mark.parametrize(("loss_type", "surrogate"), [("bnpo", "clip"), ("dapo", "clip"), ("cispo", "cispo")])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_entropy_bonus_equals_trl_where_it_is_a_mean_over_tokens(seed, loss_type, surrogate):
    algorithm = AlgorithmConfig(surrogate=surrogate, aggregation="token", entropy_coef=0.3, kl_coef=0.1)
    assert_equal_losses(Grid.random(seed), algorithm, loss_type, "token")


@pytest.mark.parametrize("kind", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
@pytest.mark.parametrize(("loss_type", "level", "surrogate", "aggregation"), COUNTERPARTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_sampler_correction_equals_trl(seed, loss_type, level, surrogate, aggregation, kind):
    grid = Grid.random(seed)
    algorithm = AlgorithmConfig(
        surrogate=surrogate,
        aggregation=aggregation,
        kl_coef=0.7,
        correction=kind,
        correction_low=0.5,
        correction_high=1.2,
        correction_average="product",
    )
    # As in `_generate_and_score_completions`: TRL's sequence ratio is the product, kept as [ROWS, 1]
    difference = (grid.old - grid.sampler) * grid.mask
    ratio = (difference.sum(1, keepdim=True) if kind.startswith("sequence") else difference).exp()
    if kind.endswith("truncate"):
        correction = ratio.clamp(max=1.2)
    else:
        correction = ratio.masked_fill((ratio < 0.5) | (ratio > 1.2), 0.0)
    assert_equal_losses(grid, algorithm, loss_type, level, correction)


@pytest.mark.parametrize("seed", SEEDS)
def test_clip_fraction_kl_and_entropy_equal_what_trl_logs(seed):
    grid = Grid.random(seed)
    algorithm = AlgorithmConfig(aggregation="token", kl_coef=0.7)
    _, logged = trl_loss(grid, algorithm, "dapo", "token")
    measures = Measures()
    terms = grid.terms("token")
    measures.add(terms, policy_loss(terms, algorithm)[1], algorithm)
    got = measures.metrics()
    names = {
        "policy/clip_fraction_low": "clip_ratio/low_mean",
        "policy/clip_fraction_high": "clip_ratio/high_mean",
        "policy/clip_fraction": "clip_ratio/region_mean",
        "kl_ref/k3": "kl",
        "policy/entropy": "entropy",
    }
    # TRL counts in float32
    assert {name: got[name] for name in names} == pytest.approx(
        {ours: logged[trl] for ours, trl in names.items()}, 1e-6
    )
    assert got["policy/clip_fraction_low"] > 0 and got["policy/clip_fraction_high"] > 0


def test_the_preset_of_trl_has_its_defaults():
    theirs = {name: field.default for name, field in GRPOConfig.__dataclass_fields__.items()}
    ours = load_config("story", ["algorithm=trl"]).algorithm
    assert (ours.clip_low, ours.clip_high) == (theirs["epsilon"], theirs["epsilon_high"] or theirs["epsilon"])
    assert (ours.kl_coef, ours.num_epochs) == (theirs["beta"], theirs["num_iterations"])
    assert (theirs["loss_type"], theirs["importance_sampling_level"], "clip", "token") in [
        (loss, level, ours.surrogate, ours.aggregation) for loss, level, *_ in COUNTERPARTS
    ]
    assert theirs["scale_rewards"] == "group" and (ours.advantage, ours.std) == ("standard", "sample")
    assert ours.correction == theirs["vllm_importance_sampling_mode"] and ours.correction_average == "product"
    assert ours.correction_high == theirs["vllm_importance_sampling_clip_max"]
    assert ours.correction_low == (theirs["vllm_importance_sampling_clip_min"] or 0)
    assert ours.mask_truncated == theirs["mask_truncated_completions"]
