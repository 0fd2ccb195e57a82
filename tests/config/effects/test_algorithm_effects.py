"""Keys of `algorithm`, on a few tokens by hand, on hand-made groups, and on steps of a tiny model."""

from __future__ import annotations

from math import e, exp, log, sqrt

import pytest
import torch

from effects.made import REWARDS, always_one, made_batch, made_groups, metrics_of, read_jsonl
from effects.registry import effect
from shoal.algorithms.advantages import group_advantages
from shoal.algorithms.batch import make_batch
from shoal.algorithms.losses import policy_loss
from shoal.algorithms.terms import TokenTerms
from shoal.errors import ConfigError


def two_tokens(
    old: tuple[float, float], advantages: tuple[float, float], sampler: tuple[float, float] | None = None
) -> TokenTerms:
    """One completion of two tokens with log-prob 0 each, weighted 1 each. The reference's are -ln 2, so that d = ln 2;
    the entropies 1 and 2."""
    logprobs = torch.zeros(2, dtype=torch.float64, requires_grad=True)

    def wide(values: tuple[float, float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)

    return TokenTerms(
        logprobs=logprobs,
        old_logprobs=wide(old),
        sampler_logprobs=wide(old if sampler is None else sampler),
        advantages=wide(advantages),
        weights=torch.ones(2, dtype=torch.float64),
        completion=torch.zeros(2, dtype=torch.int64),
        num_completions=1,
        unit_logprobs=logprobs,
        ref_logprobs=wide((-log(2), -log(2))),
        entropy=wide((1.0, 2.0)),
    )


ON_POLICY = ((0.0, 0.0), (1.0, 1.0))
# Ratios 2 (its token clipped above) and 1/2 (its token, of advantage -1, clipped below).
OFF_POLICY = ((-log(2), log(2)), (1.0, -1.0))


@pytest.fixture
def loss(settings):
    """The loss of two tokens under changed keys."""

    def of(changes: dict[str, object], *terms: tuple[float, float]) -> float:
        return policy_loss(two_tokens(*terms), settings(changes).algorithm)[0].item()

    return of


@effect("algorithm.surrogate")
def test_each_surrogate_has_its_own_gradient(settings):
    # Ratios 2 and 1, advantages 1, clip at 1.2.
    def gradient(surrogate: str) -> list[float]:
        terms = two_tokens((-log(2), 0.0), (1.0, 1.0))
        policy_loss(terms, settings({"algorithm.surrogate": surrogate}).algorithm)[0].backward()
        return terms.logprobs.grad.tolist()

    assert gradient("clip") == pytest.approx([0.0, -1.0]), "the clipped token has none"
    assert gradient("cispo") == pytest.approx([-1.2, -1.0]), "its weight is clipped, its gradient stays"
    # The completion's ratio is sqrt(2), above 1.2.
    assert gradient("gspo") == pytest.approx([0.0, 0.0])


@effect("algorithm.clip_low", "algorithm.clip_high")
def test_the_clip_bounds_the_ratio_on_both_sides(loss, settings):
    assert loss({}, *OFF_POLICY) == pytest.approx(-1.2 + 0.8)
    assert loss({"algorithm.clip_high": 0.5}, *OFF_POLICY) == pytest.approx(-1.5 + 0.8)
    assert loss({"algorithm.clip_low": 0.4}, *OFF_POLICY) == pytest.approx(-1.2 + 0.6)


@effect("algorithm.advantage", "algorithm.std", "algorithm.eps")
def test_advantages_of_one_right_answer_in_three(settings):
    def advantages(changes: dict[str, object]) -> list[float | None]:
        return group_advantages(REWARDS[0], settings(changes).algorithm)

    # Rewards 1, 0, 0: mean 1/3, variance 2/9 (population) or 1/3 (sample).
    def expected(scale: float) -> object:
        return pytest.approx([2 / 3 * scale, -1 / 3 * scale, -1 / 3 * scale], rel=1e-5)

    assert advantages({}) == expected(1 / sqrt(2 / 9))
    assert advantages({"algorithm.std": "sample"}) == expected(1 / sqrt(1 / 3))
    assert advantages({"algorithm.eps": 1.0}) == expected(1 / (sqrt(2 / 9) + 1))
    assert advantages({"algorithm.advantage": "centered"}) == expected(1.0)
    assert advantages({"algorithm.advantage": "leave_one_out"}) == expected(1.5)


@effect("algorithm.aggregation")
def test_each_aggregation_weighs_long_completions_differently(settings, make_learner):
    norms = []
    for aggregation in ("token", "sequence", "constant"):
        cfg = settings({"algorithm.aggregation": aggregation})
        norms.append(make_learner(cfg).train(made_batch(cfg))["train/grad_norm"])
    token, sequence, constant = norms
    # 23 trained tokens, or 6 completions times 6 new tokens: the same sum over another constant.
    assert token / constant == pytest.approx(36 / 23, rel=1e-4)
    assert abs(sequence / token - 1) > 0.01


@effect("algorithm.kl_coef", "algorithm.kl_estimator")
def test_each_kl_estimator_adds_its_value_times_the_coefficient(loss, settings):
    without = loss({}, *ON_POLICY)
    # d = ln 2 and w = 1 on both tokens.
    values = {"k2": log(2) ** 2 / 2, "k3": log(2) - 0.5, "k4": log(2)}
    for name, value in values.items():
        found = loss({"algorithm.kl_coef": 0.1, "algorithm.kl_estimator": name}, *ON_POLICY)
        assert found - without == pytest.approx(0.1 * 2 * value)
    with pytest.raises(ConfigError, match="kl_estimator=k1 in the loss has no expected gradient"):
        loss({"algorithm.kl_coef": 0.1, "algorithm.kl_estimator": "k1"}, *ON_POLICY)


@effect("algorithm.kl_coef", "algorithm.kl_in")
def test_the_kl_goes_into_the_loss_or_the_reward(settings, trained):
    def last_step(changes: dict[str, object]) -> tuple[bool, bool, bool]:
        """Of the second step, when policy and reference differ: KL measured, in the loss, and in the penalties."""
        folder = trained(settings({"monitor.samples_every": 1, **changes}))
        row = metrics_of(folder)[-1]
        penalties = [sample["penalties"].get("kl", 0.0) for sample in read_jsonl(folder / "samples" / "step_2.jsonl")]
        return "kl_ref/k3" in row, row["loss/kl"] != 0, any(penalties)

    assert last_step({}) == (False, False, False)
    assert last_step({"algorithm.kl_coef": 0.1}) == (True, True, False)
    assert last_step({"algorithm.kl_coef": 0.1, "algorithm.kl_in": "reward"}) == (True, False, True)


@effect("algorithm.sampler_kl_coef")
def test_the_kl_to_the_sampler_is_added_with_its_coefficient(loss, settings):
    terms = (*ON_POLICY, (-1.0, -1.0))
    # d = l - l_gen = 1 on both tokens: k3 = e^-1 - 1 + 1.
    assert loss({"algorithm.sampler_kl_coef": 0.5}, *terms) - loss({}, *terms) == pytest.approx(0.5 * 2 / e)


@effect("algorithm.entropy_coef")
def test_the_entropy_bonus_is_taken_off_the_loss(settings, loss, make_learner):
    assert loss({"algorithm.entropy_coef": 0.5}, *ON_POLICY) - loss({}, *ON_POLICY) == pytest.approx(-0.5 * (1 + 2))
    cfg = settings({"algorithm.entropy_coef": 0.5})
    assert make_learner(cfg).train(made_batch(cfg))["loss/entropy"] < 0


@effect("algorithm.old_logprobs")
def test_old_logprobs_of_the_sampler_move_the_ratio_away_from_one(settings, make_learner):
    def mean_ratio(changes: dict[str, str]) -> float:
        cfg = settings(changes)
        return make_learner(cfg).train(made_batch(cfg))["policy/ratio_mean"]

    assert mean_ratio({}) == 1.0
    assert abs(mean_ratio({"algorithm.old_logprobs": "sampler"}) - 1) > 0.1


# rho of the two tokens: 3 and 1/4; product 3/4, geometric mean sqrt(3)/2.
MISMATCH = (*ON_POLICY, (-log(3), log(4)))


@effect("algorithm.correction")
def test_each_correction_weighs_the_mismatch_in_its_way(loss, settings):
    # The surrogate of each token is -1 times its weight; the cap is 2, the band 0.5 to 2.
    expected = {
        "none": 2.0,
        "token_truncate": 2 + 1 / 4,
        "token_mask": 0.0,
        "sequence_truncate": sqrt(3),
        "sequence_mask": sqrt(3),
    }
    for correction, weight in expected.items():
        assert loss({"algorithm.correction": correction}, *MISMATCH) == pytest.approx(-weight)
    # A geometric mean of 3 lies outside the band: capped, or masked.
    far = (*ON_POLICY, (-log(3), -log(3)))
    assert loss({"algorithm.correction": "sequence_truncate"}, *far) == pytest.approx(-4)
    assert loss({"algorithm.correction": "sequence_mask"}, *far) == 0.0


@effect("algorithm.correction_low", "algorithm.correction_high")
def test_the_band_of_the_correction_has_two_edges(loss, settings):
    mask = {"algorithm.correction": "token_mask"}
    assert loss({**mask, "algorithm.correction_low": 0.2}, *MISMATCH) == pytest.approx(-1 / 4)
    assert loss({**mask, "algorithm.correction_high": 4.0}, *MISMATCH) == pytest.approx(-3)
    truncate = {"algorithm.correction": "token_truncate", "algorithm.correction_high": 2.5}
    assert loss(truncate, *MISMATCH) == pytest.approx(-(2.5 + 1 / 4))


@effect("algorithm.correction_average")
def test_a_completions_mismatch_is_a_product_or_a_geometric_mean(loss, settings):
    sequence = {"algorithm.correction": "sequence_truncate"}
    assert loss(sequence, *MISMATCH) == pytest.approx(-2 * exp((log(3) - log(4)) / 2))
    assert loss({**sequence, "algorithm.correction_average": "product"}, *MISMATCH) == pytest.approx(-2 * 3 / 4)


@effect("algorithm.num_epochs", "algorithm.num_minibatches")
def test_epochs_times_minibatches_are_the_optimizer_steps(settings, make_learner):
    def steps(changes: dict[str, int]) -> float:
        cfg = settings(changes)
        return make_learner(cfg).train(made_batch(cfg))["train/optimizer_steps"]

    assert steps({}) == 1
    assert steps({"algorithm.num_epochs": 2}) == 2
    assert steps({"algorithm.num_minibatches": 3}) == 3


@effect("algorithm.zero_variance")
def test_groups_of_equal_rewards_are_kept_or_dropped(settings):
    assert made_batch(settings()).completions == 6
    assert made_batch(settings({"algorithm.zero_variance": "drop"})).completions == 3


@effect("algorithm.zero_variance", "algorithm.refill_rounds")
def test_groups_of_equal_rewards_are_replaced_for_so_many_rounds(settings, open_run):
    def sampled_and_used(changes: dict[str, object]) -> tuple[float, float]:
        source = open_run(settings(changes), reward=always_one).source
        source.next_groups(1)
        return source.metrics()["groups/sampled"], source.metrics()["groups/used"]

    refill = {"algorithm.zero_variance": "refill"}
    assert sampled_and_used({}) == (2, 2)
    assert sampled_and_used({**refill, "algorithm.refill_rounds": 1}) == (4, 0)
    assert sampled_and_used({**refill, "algorithm.refill_rounds": 3}) == (8, 0)


@effect("algorithm.mask_truncated")
def test_truncated_completions_leave_the_loss_but_not_their_group(settings):
    kept, masked = (made_batch(settings({"algorithm.mask_truncated": value})) for value in (False, True))
    # The third completion of the first group, of 6 tokens.
    assert (kept.trained_tokens, masked.trained_tokens) == (23, 17)
    assert masked.sequences[0].advantages[0] == kept.sequences[0].advantages[0]


@effect("algorithm.overlong.penalty", "algorithm.overlong.buffer")
def test_the_overlong_penalty_grows_over_the_buffer(settings):
    def penalties(penalty: float, buffer: int) -> list[float]:
        cfg = settings({"algorithm.overlong.penalty": penalty, "algorithm.overlong.buffer": buffer})
        groups = made_groups()
        make_batch(groups, cfg.algorithm, temperature=1.0, max_new_tokens=6)
        return [completion.penalties.get("overlong", 0.0) for completion in groups[0].completions]

    # Lengths 3, 5 and 6 of at most 6.
    assert penalties(0.0, 0) == [0, 0, 0]
    assert penalties(1.0, 2) == [0, 0.5, 1.0]
    assert penalties(2.0, 2) == [0, 1.0, 2.0]
    assert penalties(1.0, 4) == [0.25, 0.75, 1.0]


def test_a_run_tells_its_batches_how_many_positions_the_model_has(settings, open_run):
    run = open_run(settings({}))
    assert run.batch_arguments()["max_positions"] == run.parts.policy.max_positions
