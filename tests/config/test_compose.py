"""Presets, groups and overrides become a `ShoalConfig`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shoal.config import ShoalConfig, load_config
from shoal.config.compose import PRESETS, preset_names
from shoal.config.nodes.algorithm import AlgorithmConfig, OverlongConfig

NAMES = preset_names(PRESETS)
ALGORITHMS = preset_names(PRESETS, "algorithm")


def test_the_presets_and_groups_are_the_ones_the_readme_names():
    assert NAMES == [
        "code",
        "debug_0.5b",
        "gsm8k",
        "gsm8k_api",
        "ifeval",
        "math",
        "open_instruct2",
        "rlzero_7b_math",
        "rubric",
        "story",
        "story_api",
    ]
    assert ALGORITHMS == ["cispo", "dapo", "dr_grpo", "grpo", "gspo", "open_instruct", "trl"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_preset_composes_with_every_algorithm_into_real_dataclasses(name: str, algorithm: str):
    config = load_config(name, [f"algorithm={algorithm}"])
    assert type(config) is ShoalConfig
    assert type(config.algorithm) is AlgorithmConfig
    assert type(config.algorithm.overlong) is OverlongConfig


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        # The table of presets in the design: surrogate, clip_low, clip_high, advantage, aggregation.
        ("grpo", ("clip", 0.2, 0.2, "standard", "sequence")),
        ("dr_grpo", ("clip", 0.2, 0.2, "centered", "constant")),
        ("dapo", ("clip", 0.2, 0.28, "standard", "token")),
        ("cispo", ("cispo", 0.2, 4.0, "standard", "token")),
        ("gspo", ("gspo", 3e-4, 4e-4, "standard", "sequence")),
        # What other trainers do by default.
        ("trl", ("clip", 0.2, 0.2, "standard", "token")),
        ("open_instruct", ("clip", 0.2, 0.272, "centered", "token")),
    ],
)
def test_an_algorithm_preset_sets_what_its_paper_says(algorithm: str, expected: tuple[object, ...]):
    a = load_config("story", [f"algorithm={algorithm}"]).algorithm
    assert (a.surrogate, a.clip_low, a.clip_high, a.advantage, a.aggregation) == expected


def test_dapo_refills_and_penalises_the_last_fifth_of_whatever_the_token_limit_is():
    config = load_config("gsm8k", ["algorithm=dapo", "sampling.max_new_tokens=100"])
    assert config.algorithm.zero_variance == "refill"
    assert config.algorithm.overlong == OverlongConfig(penalty=1.0, buffer=20)


def test_presets_of_other_trainers_take_their_normalisation_correction_and_kl():
    trl = load_config("story", ["algorithm=trl"]).algorithm
    assert (trl.std, trl.eps, trl.kl_coef) == ("sample", 1e-4, 0)
    mask = (trl.correction, trl.correction_average, trl.correction_low, trl.correction_high)
    assert mask == ("sequence_mask", "product", 0, 3)
    theirs = load_config("story", ["algorithm=open_instruct"]).algorithm
    assert (theirs.kl_coef, theirs.kl_estimator, theirs.zero_variance) == (0.05, "k3", "drop")
    assert (theirs.correction, theirs.correction_high) == ("token_truncate", 2)


def test_the_default_is_the_recipe_that_is_known_to_learn():
    config = load_config()
    assert config.model.name == config.data.task == "story"
    assert (config.run.steps, config.run.prompts_per_step, config.run.group_size) == (100, 32, 8)
    assert (config.sampling.temperature, config.sampling.max_new_tokens) == (1.0, 40)
    optimizer = config.optimizer
    assert (optimizer.lr, optimizer.warmup_steps, optimizer.betas) == (3e-4, 5, [0.9, 0.95])
    assert (optimizer.weight_decay, optimizer.max_grad_norm) == (0.0, 1.0)
    assert config.algorithm.kl_coef == 0.0
    assert config.evaluation.at_start and config.evaluation.at_end


def test_a_single_key_wins_over_the_group_in_either_order():
    for overrides in (["algorithm=dapo", "algorithm.clip_high=0.5"], ["algorithm.clip_high=0.5", "algorithm=dapo"]):
        algorithm = load_config("story", overrides).algorithm
        assert (algorithm.clip_high, algorithm.aggregation) == (0.5, "token")


def test_seam_groups_choose_the_kind():
    config = load_config(
        "story", ["source=replay", "source.path=old", "engine=torch", "learner=local", "weight_sync=in_place"]
    )
    assert config.source.kind == "replay"


def test_an_entry_of_a_dict_needs_no_plus_sign():
    config = load_config(
        "gsm8k", ["reward.verifiers.gsm8k=0.5", "evaluation.sampling.temperature=0", "model.chat_template_kwargs.x=[1]"]
    )
    assert config.reward.verifiers == {"gsm8k": 0.5}
    assert config.evaluation.sampling == {"temperature": 0}
    assert config.model.chat_template_kwargs == {"enable_thinking": False, "x": [1]}


def test_model_is_short_for_its_name():
    assert load_config("story", ["model=/some/folder"]).model.name == "/some/folder"


def test_values_of_list_keys_are_not_shared_between_configurations():
    one, other = load_config(), load_config()
    one.optimizer.betas[0] = 0.5
    assert other.optimizer.betas[0] == 0.9


def test_a_users_preset_builds_on_shoals_and_a_users_group_file_is_found(tmp_path: Path):
    (tmp_path / "algorithm").mkdir()
    (tmp_path / "algorithm" / "mine.yaml").write_text("clip_high: 0.7\n")
    (tmp_path / "small.yaml").write_text(
        "defaults:\n  - gsm8k\n  - override algorithm: mine\n  - _self_\nrun:\n  steps: 7\n"
    )
    config = load_config("small", config_dir=tmp_path)
    assert (config.run.steps, config.algorithm.clip_high, config.data.task) == (7, 0.7, "gsm8k")
    assert load_config("story", ["algorithm=mine"], tmp_path).algorithm.clip_high == 0.7


def test_a_users_preset_without_defaults_stands_on_the_dataclasses(tmp_path: Path):
    (tmp_path / "bare.yaml").write_text("run:\n  steps: 7\n")
    config = load_config("bare", config_dir=tmp_path)
    assert (config.run.steps, config.optimizer.lr) == (7, ShoalConfig().optimizer.lr)


def test_importing_the_configuration_imports_no_torch():
    code = "import shoal.config, shoal.cli, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
