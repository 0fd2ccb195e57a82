"""Combinations that are said at the start."""

from __future__ import annotations

import pytest

from shoal.config import load_config
from shoal.config.cautions import cautions

KL = ["algorithm.kl_coef=0.1", "algorithm.kl_in=reward"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], []),
        (["model.lora.dropout=0.05"], []),
        (["model.train=lora"], []),
        (["model.train=lora", "model.lora.dropout=0.05"], ["model.lora.dropout=0.05"]),
        (KL, ["algorithm.kl_in=reward"]),
        ([*KL, "algorithm.advantage=centered"], []),
        (["algorithm.kl_coef=0.1"], []),
    ],
)
def test_a_combination_is_said_where_it_seldom_does_what_is_meant(overrides: list[str], said: list[str]):
    lines = list(cautions(load_config("story", overrides)))
    assert [line.split(":")[0].split(" with ")[0] for line in lines] == said
