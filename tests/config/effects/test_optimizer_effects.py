"""Keys of `optimizer`, on one number by hand."""

from __future__ import annotations

from math import sqrt

import pytest
import torch

from effects.registry import effect
from shoal.errors import ConfigError
from shoal.learners.optimizer import PolicyOptimizer
from shoal.runtime import resolve_runtime

STEPS = 8


@pytest.fixture
def optimizer_of(settings):
    """An optimizer of one weight, a matrix of one entry that starts at 1."""

    def make(changes: dict[str, object]) -> PolicyOptimizer:
        cfg = settings({"optimizer.lr": 0.1, **changes})
        module = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.ones_(module.weight)
        return PolicyOptimizer(module, cfg.optimizer, resolve_runtime(cfg.runtime, cfg.model), STEPS)

    return make


def follow(optimizer: PolicyOptimizer, *gradients: float) -> float:
    """The weight after a step for each gradient."""
    (weight,) = optimizer.parameters
    for gradient in gradients:
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step(optimizer.gradient_norm())
        optimizer.zero_grad()
    return weight.item()


def rates(optimizer: PolicyOptimizer) -> list[float]:
    """The learning rate of each step."""
    found = []
    for _ in range(STEPS):
        found.append(round(optimizer.lr, 6))
        follow(optimizer, 0.0)
    return found


@effect("optimizer.name")
def test_the_8_bit_optimizer_is_refused_without_cuda(optimizer_of, settings, monkeypatch):
    # Its effect needs a GPU; here it is the refusal, and not AdamW in its place.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert isinstance(optimizer_of({}).optimizer, torch.optim.AdamW)
    with pytest.raises(ConfigError, match="adamw_8bit needs CUDA"):
        optimizer_of({"optimizer.name": "adamw_8bit", "runtime.target": "auto"})


@effect("optimizer.lr")
def test_the_first_step_of_adam_is_as_long_as_the_learning_rate(optimizer_of, settings):
    assert follow(optimizer_of({}), 1.0) == pytest.approx(0.9)
    assert follow(optimizer_of({"optimizer.lr": 0.25}), 1.0) == pytest.approx(0.75)


@effect("optimizer.betas")
def test_betas_are_the_memory_of_the_two_moments(optimizer_of, settings):
    # Gradients 1 and -1. Without memory the second step undoes the first.
    assert follow(optimizer_of({"optimizer.betas": [0.0, 0.0]}), 1.0, -1.0) == pytest.approx(1.0)
    # With a first beta of .9: m = (.9 x .1 - .1) / (1 - .81) = -.01 / .19; the second moment stays 1.
    assert follow(optimizer_of({}), 1.0, -1.0) == pytest.approx(0.9 + 0.1 * 0.01 / 0.19)
    # Gradients 1 and 3 with a second beta of .5: v = (.5 x .5 + .5 x 9) / (1 - .25) = 19/3; m = 3.
    free = {"optimizer.max_grad_norm": 0.0, "optimizer.betas": [0.0, 0.5]}
    assert follow(optimizer_of(free), 1.0, 3.0) == pytest.approx(0.9 - 0.1 * 3 / (19 / 3) ** 0.5)


@effect("optimizer.eps")
def test_eps_is_added_to_the_root_of_the_second_moment(optimizer_of, settings):
    # 1 / (1 + 1)
    assert follow(optimizer_of({"optimizer.eps": 1.0}), 1.0) == pytest.approx(0.95)
    assert follow(optimizer_of({}), 1.0) == pytest.approx(0.9)


@effect("optimizer.weight_decay")
def test_weight_decay_shrinks_a_matrix_without_gradient(optimizer_of, settings):
    assert follow(optimizer_of({}), 0.0) == 1.0
    assert follow(optimizer_of({"optimizer.weight_decay": 0.5}), 0.0) == pytest.approx(1 - 0.1 * 0.5)


@effect("optimizer.max_grad_norm")
def test_gradients_are_scaled_down_to_the_norm(optimizer_of, settings):
    # A gradient of 3, kept or clipped to 1 or 2; the large eps makes the step depend on it: g / (g + 1).
    for limit, gradient in {0.0: 3.0, 1.0: 1.0, 2.0: 2.0}.items():
        optimizer = optimizer_of({"optimizer.eps": 1.0, "optimizer.max_grad_norm": limit})
        assert follow(optimizer, 3.0) == pytest.approx(1 - 0.1 * gradient / (gradient + 1), rel=1e-5)


@effect("optimizer.warmup_steps", "optimizer.warmup_ratio")
def test_the_learning_rate_rises_over_the_warm_up(optimizer_of, settings):
    risen = [0.025, 0.05, 0.075, 0.1, 0.1, 0.1, 0.1, 0.1]
    assert rates(optimizer_of({})) == [0.1] * STEPS
    assert rates(optimizer_of({"optimizer.warmup_steps": 4})) == risen
    assert rates(optimizer_of({"optimizer.warmup_ratio": 0.5})) == risen


SCHEDULES = {
    # The share of the peak at steps 0, 2, 4, 6 of 8: 1; 1 - t/8; (1 + cos(pi t/8)) / 2; the latter twice over;
    # (1 - t/8)^2; 1 / sqrt(1 + t/4).
    "constant": ({}, [1, 1, 1, 1]),
    "linear": ({}, [1, 3 / 4, 1 / 2, 1 / 4]),
    "cosine": ({}, [1, (1 + sqrt(1 / 2)) / 2, 1 / 2, (1 - sqrt(1 / 2)) / 2]),
    "cosine_with_restarts": ({"num_cycles": 2}, [1, 1 / 2, 1, 1 / 2]),
    "polynomial": ({"power": 2}, [1, 9 / 16, 1 / 4, 1 / 16]),
    "inverse_sqrt": ({"timescale": 4}, [1, sqrt(2 / 3), sqrt(1 / 2), sqrt(2 / 5)]),
}


@effect("optimizer.scheduler", "optimizer.scheduler_kwargs")
def test_each_schedule_has_its_own_curve(optimizer_of, settings):
    for name, (arguments, shares) in SCHEDULES.items():
        optimizer = optimizer_of({"optimizer.scheduler": name, "optimizer.scheduler_kwargs": arguments})
        assert rates(optimizer)[::2] == pytest.approx([0.1 * share for share in shares], abs=1e-6), name


@effect("optimizer.scheduler_kwargs")
def test_an_argument_that_the_schedule_does_not_take_is_refused(optimizer_of, settings):
    with pytest.raises(
        ConfigError, match=r"scheduler=cosine refuses .*'power': 2.*unexpected keyword argument 'power'"
    ):
        optimizer_of({"optimizer.scheduler": "cosine", "optimizer.scheduler_kwargs": {"power": 2}})
    optimizer_of({"optimizer.scheduler": "polynomial", "optimizer.scheduler_kwargs": {"power": 2}})
    with pytest.raises(ConfigError, match="must be smaller than initial lr"):
        optimizer_of({"optimizer.scheduler": "polynomial", "optimizer.lr": 1e-8})
