"""Whatever is wrong with a configuration is said in one line with the nearest valid name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from shoal.config import load_config
from shoal.config.compose import PRESETS, preset_names
from shoal.config.sweep import check_sweep
from shoal.errors import ConfigError

Refusal = Callable[..., str]


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("run.stepz=3", "run.steps"),
        ("lr=1e-4", "optimizer.lr"),
        ("optim.lr=1e-4", "optimizer.lr"),
        ("policy.kl_coef=0.1", "algorithm.kl_coef"),
        ("+run.stepz=3", "run.steps"),
        ("++run.grop_size=3", "run.group_size"),
        ("monitor.wandb.projekt=x", "monitor.wandb.project"),
        ("evaluation.sampling.temprature=0", "evaluation.sampling.temperature"),
    ],
)
def test_an_unknown_key_names_itself_and_the_nearest_one(refusal_of: Refusal, override: str, meant: str):
    line = refusal_of(override)
    assert repr(override.partition("=")[0].lstrip("+")) in line
    assert f"the nearest is {meant!r}" in line


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("run.steps=abc", "run.steps: 'abc' is not a whole number"),
        ("run.steps=1.5", "run.steps: '1.5' is not a whole number"),
        ("run.steps=null", "run.steps: null is not a whole number"),
        ("optimizer.lr=fast", "optimizer.lr: 'fast' is not a number"),
        ("optimizer.betas=0.9", "optimizer.betas: 0.9 is not a list of numbers"),
        ("optimizer.betas=[a,b]", "optimizer.betas: 'a' is not a list of numbers"),
        ("data.shuffle=maybe", "data.shuffle: 'maybe' is not true or false"),
        ("data.shuffle=3", "data.shuffle: 3 is not true or false"),
        ("sampling.stop=x", "sampling.stop: 'x' is not a list of strings"),
        ("run.name={a:1}", "run.name: {'a': 1} is not a string or null"),
        ("reward.verifiers.math=much", "reward.verifiers.math: 'much' is not a number"),
        ("evaluation.sampling.temperature=hot", "evaluation.sampling.temperature: 'hot' is not a number"),
    ],
)
def test_a_wrong_type_says_what_was_given_and_what_is_wanted(refusal_of: Refusal, override: str, line: str):
    assert refusal_of(override) == line


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("run.group_size=1", "run.group_size=1: the least is 2"),
        ("optimizer.lr=-1", "optimizer.lr=-1.0: the least is 0"),
        ("optimizer.lr=nan", "optimizer.lr=nan: it must be a finite number"),
        ("algorithm.eps=inf", "algorithm.eps=inf: it must be a finite number"),
        ("evaluation.sampling.max_new_tokens=0", "evaluation.sampling.max_new_tokens=0: the least is 1"),
        (
            "algorithm.surrogate=clipp",
            "algorithm.surrogate=clipp: the nearest choice is 'clip' (there are: clip, cispo, gspo)",
        ),
    ],
)
def test_a_value_out_of_its_range_says_the_range(refusal_of: Refusal, override: str, line: str):
    assert refusal_of(override) == line


def test_an_unknown_preset_names_the_nearest_and_all(refusal_of: Refusal):
    line = refusal_of(name="gsm8")
    assert line == f"there is no preset 'gsm8'; the nearest is 'gsm8k' (there are: {', '.join(preset_names(PRESETS))})"


def test_an_unknown_choice_of_a_group_names_the_nearest_and_all(refusal_of: Refusal):
    expected = (
        "there is no algorithm=drgrpo; the nearest is 'dr_grpo' (there are: cispo, dapo, dr_grpo, grpo, gspo, "
        "open_instruct, trl)"
    )
    assert refusal_of("algorithm=drgrpo") == expected


def test_a_node_set_to_a_value_names_one_of_its_keys(refusal_of: Refusal):
    assert refusal_of("run=3") == "'run=3': run holds other keys; set one of them, such as run.name"


def test_a_sweep_outside_a_sweep_says_which_option_is_missing(refusal_of: Refusal):
    assert "add --multirun" in refusal_of("run.steps=1,2")


def test_a_text_with_a_comma_is_told_how_to_quote_it(refusal_of: Refusal):
    assert "quote one text with a comma twice" in refusal_of("data.system_prompt=Think, then answer.")
    assert (
        load_config("story", ['data.system_prompt="Think, then answer."']).data.system_prompt == "Think, then answer."
    )


def test_hydras_own_settings_are_for_sweeps_and_not_for_folders(refusal_of: Refusal):
    assert "add --multirun" in refusal_of("hydra/launcher=joblib")
    assert "run.root and run.name" in refusal_of("hydra.run.dir=elsewhere")


def test_an_unknown_launcher_names_the_nearest_and_all():
    with pytest.raises(ConfigError) as caught:
        check_sweep("story", ["hydra/launcher=job", "run.seed=1,2"], PRESETS)
    line = "there is no hydra/launcher=job; the nearest is 'joblib' (there are: basic, joblib)"
    assert str(caught.value).endswith(line)


def test_an_override_that_cannot_be_read_shows_how_one_is_written(refusal_of: Refusal):
    for broken in ("run.steps", "a b=c", "run.steps=[1"):
        line = refusal_of(broken)
        assert repr(broken) in line and "key=value" in line


def test_a_key_cannot_be_taken_away(refusal_of: Refusal):
    assert "cannot be taken away" in refusal_of("~run.steps")


def test_a_reference_to_a_missing_key_is_named(refusal_of: Refusal):
    assert refusal_of("run.name=${nope.x}") == "run.name: Interpolation key 'nope.x' not found"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("run:\n  stepz: 3\n", "in mine.yaml: there is no key 'run.stepz'; the nearest is 'run.steps'"),
        ("runn:\n  steps: 3\n", "in mine.yaml: there is no key 'runn'"),
        ("run:\n  steps: abc\n", "in mine.yaml: run.steps: 'abc' is not a whole number"),
    ],
)
def test_a_mistake_in_a_users_file_names_the_file(refusal_of: Refusal, tmp_path: Path, text: str, line: str):
    (tmp_path / "mine.yaml").write_text(f"defaults: [story, _self_]\n{text}")
    assert refusal_of(name="mine", config_dir=tmp_path).startswith(line)


def test_an_unknown_choice_in_a_users_file_names_the_nearest(refusal_of: Refusal, tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("defaults:\n  - story\n  - override algorithm: dpao\n  - _self_\n")
    line = refusal_of(name="mine", config_dir=tmp_path)
    assert line.startswith("there is no algorithm=dpao; the nearest is 'dapo'")


@pytest.mark.parametrize("text", ["run: [\n", "- a\n- b\n", "run: 3\n"])
def test_a_file_that_is_no_configuration_is_one_line_too(refusal_of: Refusal, tmp_path: Path, text: str):
    (tmp_path / "mine.yaml").write_text(text)
    refusal_of(name="mine", config_dir=tmp_path)


def test_a_folder_that_is_none_is_named(refusal_of: Refusal, tmp_path: Path):
    assert str(tmp_path / "nope") in refusal_of(config_dir=tmp_path / "nope")
