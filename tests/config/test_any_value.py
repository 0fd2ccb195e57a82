"""Whatever value a key is given, it is accepted or refused in one line."""

from __future__ import annotations

import math
from copy import deepcopy
from random import Random

import pytest

from shoal.config import ShoalConfig, load_config
from shoal.config.keys import all_keys, set_value
from shoal.config.overrides import GROUPS
from shoal.config.validate import validate
from shoal.errors import ConfigError

# fmt: off
VALUES = (
    "0", "1", "-1", "2", "-0.5", "0.5", "1e23", "1e308", "-1e308", "1e-320", "nan", "inf", "-inf",
    "99999999999999999999999", "true", "null", "''", "x", "???", "[]", "[1]", "[nan]", "[1e300,1]", "[null]",
    "[[1]]", "{}", "{a:1}", "{a:nan}", "{a:{b:null}}", "{1:2}", "'${x}'", "'${run.steps}'", "'\\${x}'", "é",
    "'a\\nb'", "auto", "1e3", "0x10", "007", "1_000", "'\\x00'",
)
# fmt: on
STORY = load_config("story")
LEAVES = [key for key in all_keys().values() if not key.node]


def outcome(override: str) -> ShoalConfig | None:
    """The configuration, or None where it is refused in one line; anything else that is raised is a failure."""
    try:
        return load_config("story", [override])
    except ConfigError as error:
        line = str(error)
        assert line and "\n" not in line and "Traceback" not in line, (override, line)
        return None


def test_values_drawn_at_random_for_keys_drawn_at_random_are_taken_or_refused() -> None:
    random = Random(0)
    for _ in range(8):
        outcome(f"{random.choice(LEAVES).name}={random.choice(VALUES)}")


@pytest.mark.parametrize("name", [key.name for key in LEAVES if getattr(key.type, "__origin__", None) in (dict, list)])
def test_a_text_is_no_list_and_no_values_by_name(name: str) -> None:
    config = deepcopy(STORY)
    set_value(config, name, "${x}")
    with pytest.raises(ConfigError, match=r"is not (a list|names|numbers|values)"):
        validate(config)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
def test_many_more_are(seed: int) -> None:
    random = Random(seed)
    for _ in range(200):
        outcome(f"{random.choice(LEAVES).name}={random.choice(VALUES)}")


@pytest.mark.parametrize(
    "number", [0, 1, -1, 2**31, 2**63, 10**23, 1e-320, -1e-320, 1e308, math.nan, math.inf, -math.inf]
)
def test_every_key_of_a_number_takes_or_refuses_any(number: float) -> None:
    for key in LEAVES:
        if key.type not in (int, float):
            continue
        config = deepcopy(STORY)
        set_value(config, key.name, int(number) if key.type is int and math.isfinite(number) else number)
        try:
            validate(config)
        except ConfigError as error:
            assert "\n" not in str(error)
        else:
            assert abs(number) <= 2**31, key.name


@pytest.mark.parametrize("value", ["0", "null", "[a]", "{a:1}", "true", "''", "nan"])
def test_a_group_that_is_no_name_is_refused(value: str) -> None:
    for group in GROUPS:
        assert outcome(f"{group}={value}") is None


@pytest.mark.parametrize(
    "override",
    [
        "run.steps=1e23",
        "run.steps=99999999999999999999999",
        "run.seed=9223372036854775808",
        "runtime.threads=100000",
        "reward.workers=1e5",
        "engine.vllm.port=99999",
        "reference.port=99999",
        "engine.serve_port=99999",
        "reward.timeout=1e-320",
        "reward.timeout=1e300",
        "optimizer.eps=1e-320",
        "optimizer.betas=[nan,0.9]",
        "reward.verifiers={gsm8k:nan}",
        "reward.verifiers={gsm8k:1e300}",
        "reward.code.threshold=2",
        "reward.options={max_length:1}",
        "run.name=???",
        "data.path=???",
        "sampling.stop=['???']",
        "reward.options.max_length.scale=???",
        "reward.format.pattern=''",
        "algorithm=0",
    ],
)
def test_values_that_mean_nothing_are_refused(override: str) -> None:
    assert outcome(override) is None


def test_the_largest_seed_is_taken() -> None:
    assert load_config("story", ["run.seed=9223372036854775807"]).run.seed == 2**63 - 1
