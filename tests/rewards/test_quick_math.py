"""Answers that need no sympy are judged in this process, and as the worker process would judge them."""

import pytest
from verifier_table import TABLE

from shoal.config.nodes.data import RewardConfig
from shoal.rewards.base import Submission
from shoal.rewards.scorer import Scorer
from shoal.rewards.verifiers.math import math, quick_math, quick_strict_math, strict_math
from shoal.types import Completion, Group, Prompt, Segment, StopReason


@pytest.mark.parametrize(
    ("name", "slow", "quick"), [("math", math, quick_math), ("strict_math", strict_math, quick_strict_math)]
)
def test_where_the_quick_verifier_decides_it_gives_what_the_other_gives(name, slow, quick):
    decided = 0
    for text, truth, _ in TABLE[name]:
        given = quick(Submission(text, truth))
        if given is not None:
            decided += 1
            assert given == slow(Submission(text, truth)), (text, truth)
    assert decided > len(TABLE[name]) / 2


def test_no_process_is_started_for_numbers_polynomials_and_trigonometry():
    pairs = [
        ("\\frac{1}{2}", "0.5", 1.0),
        ("x^2+2x", "x(x+2)", 1.0),
        ("\\sin 2x", "2\\sin x\\cos x", 1.0),
        ("3", "4", 0.0),
    ]
    groups = [
        Group(
            str(row),
            [Completion([Segment([], [], [], [])], StopReason.STOP, f"\\boxed{{{answer}}}")],
            Prompt("", [], truth),
        )
        for row, (truth, answer, _) in enumerate(pairs)
    ]
    with Scorer(RewardConfig(), {"math": 1.0}) as scorer:
        scorer.score(groups)
        assert scorer.pool is None
    assert [group.completions[0].reward for group in groups] == [right for _, _, right in pairs]


@pytest.mark.parametrize(
    ("truth", "answer", "score"),
    [
        ("x=5", "5", 1.0),
        ("x=5", "x=6", 0.0),
        ("52_8", "52_{8}", 1.0),
        ("52_8", "52", 1.0),
        ("52_8", "53", 0.0),
        ("52_8", "52_{10}", 0.0),
        ("52_8", "\\sqrt{2}", 0.0),
        ("x+1", "52_8", 0.0),
        ("\\sqrt{2704}", "52_8", None),
        ("\\frac{270}7", "\\frac{270}{7}", 1.0),
        ("137\\frac{1}{2}", "\\sqrt{2}", 0.0),
        ("\\sqrt{2}", "137 \\frac{1}{2}", 0.0),
        ("\\sqrt{4}", "1\\frac{4}{4}", 1.0),
        ("50\\%", "\\frac{\\sqrt{1}}{2}", None),
        ("\\dbinom{5}{2}", "10", 1.0),
    ],
)
def test_numbers_in_a_base_after_a_name_and_among_expressions(truth, answer, score):
    assert quick_math(Submission(f"\\boxed{{{answer}}}", truth)) == score


@pytest.mark.parametrize(
    "text",
    [
        " " * 100_000,
        "final answer is " * 10_000,
        "I hope it is correct " * 10_000,
        "the answer is" + " " * 100_000,
        "\\(" * 50_000,
        "$" * 100_000,
        "1" * 100_000 + " x",
        "\\boxed{" * 10_000,
        "</think>" * 10_000,
        "<answer>" * 10_000,
        "\\boxed{" + "(" * 100_000,
        "\\boxed{" + "(" * 280 + "}",
        "\\boxed{" + "9^" * 140 + "9}",
        "\\boxed{" + "\\sqrt{" * 40 + "2" + "}" * 40 + "}",
        "\\boxed{" + "1 1 " * 60 + "}",
        "\\boxed{e^{e^{e^{e^{e^{9}}}}}}",
        "\\boxed{\\sin(9^{9}\\cdot 9^{9})}",
    ],
)
def test_a_degenerate_text_is_judged_or_left_to_the_worker_and_does_not_hang_the_trainer(text):
    # Quadratic time would be minutes here, and this process has no deadline for a verifier.
    assert quick_math(Submission(text, "e^{2}")) in (0.0, None)
