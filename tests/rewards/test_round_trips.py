"""Tests whose expected value the program itself computes are found."""

from __future__ import annotations

import pytest

from shoal.config.nodes.data import RewardConfig
from shoal.rewards.round_trips import round_trips
from shoal.rewards.scorer import Scorer
from shoal.tasks.base import Task
from shoal.training.preflight import check_program_tests
from shoal.types import Prompt


@pytest.mark.parametrize(
    ("test", "found"),
    [
        ("assert decode(encode(3)) == 3", True),
        ("assert f(1) == f(2)", True),
        ("assert close(f(1), 3.5)", True),
        ("def check(candidate):\n    assert candidate(encode(1)) == 1\ncheck(decode)", True),
        ("assert f(1) == 2", False),
        ("assert abs(f(1) - 2) < 1e-6 and sorted(f(2)) == [1]", False),
        ("import math\nassert math.isclose(f(1), 2)", False),
        ("assert depth(Node(1)) == 1", False),
        ("def encode(x): return x\nassert decode(encode(1)) == 1", False),
        ("assert f(", False),
    ],
)
def test_an_assert_that_compares_the_program_with_itself_is_found(test, found):
    assert bool(round_trips([test])) is found


def test_inputs_and_outputs_and_what_is_no_test_have_none():
    assert round_trips([{"input": "", "output": "1"}]) == []
    assert round_trips(3) == []


def test_the_start_up_check_lists_them_by_row():
    truths = [["assert decode(encode(3)) == 3"], ["assert f(1) == 2"]]
    rows = [
        Prompt(id=f"p/{n}", token_ids=[1], ground_truth=truth, verifiers=["code"]) for n, truth in enumerate(truths)
    ]
    with Scorer(RewardConfig(), {"string_match": 1.0}) as scorer:
        (result,) = check_program_tests(Task(train=rows, evaluation=[], verifiers={}, dropped={}), scorer)
        assert "1 of 2 rows" in result.detail and "p/0: assert decode(encode(3)) == 3" in result.detail
        (result,) = check_program_tests(Task(train=rows[1:], evaluation=[], verifiers={}, dropped={}), scorer)
        assert result.ok is True
        rows[1].verifiers = ["string_match"]
        assert check_program_tests(Task(train=rows[1:], evaluation=[], verifiers={}, dropped={}), scorer) == []
