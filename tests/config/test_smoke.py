"""`--smoke-test` makes any configuration small, and leaves alone what was asked for."""

from __future__ import annotations

import pytest

from shoal.config import load_config
from shoal.config.compose import PRESETS, preset_names
from shoal.config.smoke import shrink


@pytest.mark.parametrize("name", preset_names(PRESETS))
@pytest.mark.parametrize("algorithm", preset_names(PRESETS, "algorithm"))
def test_every_preset_shrinks_to_a_short_run_that_changes_weights(name: str, algorithm: str):
    small = shrink(load_config(name, [f"algorithm={algorithm}", "monitor.wandb.enabled=true"]))
    assert (small.run.steps, small.run.episodes, small.run.prompts_per_step, small.run.group_size) == (2, 0, 2, 2)
    assert small.sampling.max_new_tokens <= 64 and small.data.max_prompt_tokens <= 256
    assert 0 < small.evaluation.prompts <= 8
    assert not small.monitor.wandb.enabled and not small.monitor.tensorboard
    # A learning rate of 0 in the first steps, or groups without a difference, would change nothing.
    assert small.optimizer.warmup_steps == 0 and small.optimizer.warmup_ratio == 0
    assert small.run.made_up_advantages and small.algorithm.zero_variance == "keep"


def test_shrinking_leaves_the_original_as_it_was():
    config = load_config("gsm8k")
    shrink(config)
    assert config == load_config("gsm8k")


def test_what_is_small_already_is_not_made_larger():
    config = load_config("story", ["run.prompts_per_step=1", "sampling.max_new_tokens=10", "evaluation.prompts=3"])
    small = shrink(config, steps=5)
    assert (small.run.steps, small.run.prompts_per_step, small.sampling.max_new_tokens) == (5, 1, 10)
    assert small.evaluation.prompts == 3


def test_evaluating_all_prompts_becomes_evaluating_a_few():
    assert shrink(load_config("story", ["evaluation.prompts=0"])).evaluation.prompts == 8


def test_keys_that_were_asked_for_stay():
    config = load_config("gsm8k", ["sampling.max_new_tokens=200", "run.group_size=4"])
    small = shrink(config, keep={"sampling.max_new_tokens", "run.group_size"})
    assert (small.sampling.max_new_tokens, small.run.group_size, small.run.prompts_per_step) == (200, 4, 2)


def test_a_length_limit_of_evaluations_shrinks_with_the_training_one():
    config = load_config("gsm8k", ["evaluation.sampling.max_new_tokens=2000"])
    assert shrink(config).evaluation.sampling == {"max_new_tokens": 64}
