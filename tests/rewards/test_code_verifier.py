"""The verifier `code`: finding the program, running it, scoring it."""

from __future__ import annotations

import json

import pytest

from shoal.config import load_config
from shoal.config.nodes.code import CodeConfig
from shoal.config.nodes.data import RewardConfig
from shoal.errors import ConfigError, DataError
from shoal.rewards.answers.code_tests import read_tests
from shoal.rewards.base import REGISTRY, Submission
from shoal.rewards.sandbox.outcome import SandboxError, Status, TestResult
from shoal.rewards.scorer import Scorer
from shoal.rewards.verdict import judge
from shoal.rewards.verifiers.code import code, find_program, score_of
from shoal.types import Completion, Group, Prompt, Segment, StopReason

ADD = "```python\ndef add(a, b):\n    return a + b\n```"
TESTS = ["assert add(1, 2) == 3", "assert add(1, 1) == 2", "assert add(0, 0) == 1", "assert add('a', 'b') == 'ab'"]
WIDE = {"seconds": 20.0, "cpu_seconds": 20.0, "total_seconds": 60.0}


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("```python\na = 1\n```", "a = 1\n"),
        ("```python\na = 1\n```\nbetter:\n```python\na = 2\n```\ndone", "a = 2\n"),
        ("```python\na = 1\n```\noutput:\n```\n1\n```", "a = 1\n"),
        ("```\na = 1\n```\n```\na = 2\n```", "a = 2\n"),
        ("```py\na = 1\n```", "a = 1\n"),
        ("```Python3 title=x\na = 1\n```", "a = 1\n"),
        ("~~~python\na = 1\n~~~", "a = 1\n"),
        ("````python\na = '''\n```\n'''\n````", "a = '''\n```\n'''\n"),
        ("<answer>\na = 1\n</answer>", "a = 1"),
        ("<answer>\n```python\na = 1\n```\n</answer>", "a = 1\n"),
        ("thinking ```python\nnot a block", None),
        ("```python\na = 1", "a = 1"),
        ("```python\n```", ""),
        ("1. Do this:\n   ```python\n   def f(x):\n       return x\n   ```", "def f(x):\n    return x\n"),
        ("- ```python\n  a = 1\n  ```", "a = 1\n"),
        ("10) ```python\n    if a:\n        b\n    ```\n", "if a:\n    b\n"),
        ("  ```python\na = 1\n  ```", "a = 1\n"),
        ("```python\r\ndef f():\r\n    return 1\r\n```\r\n", "def f():\n    return 1\n"),
        ("```python\na = 1\n`````", "a = 1\n"),
        ("the answer is 3", None),
        ("", None),
    ],
)
def test_the_program_is_the_last_python_block_else_the_last_block_else_the_answer(text, program):
    assert find_program(text) == program


def test_the_score_is_the_share_of_tests_that_pass(bubblewrap):
    assert code(Submission(ADD, TESTS), **WIDE) == 0.75  # the third of four is wrong
    assert code(Submission(ADD, TESTS[:2]), **WIDE) == 1.0


def test_a_pass_rate_below_the_threshold_is_worth_nothing(bubblewrap):
    assert code(Submission(ADD, TESTS), **WIDE, threshold=0.75) == 0.75
    assert code(Submission(ADD, TESTS), **WIDE, threshold=0.8) == 0.0


def test_a_completion_without_a_program_is_wrong_and_starts_nothing():
    assert code(Submission("no program", TESTS), tier="bubblewrap", python="/no/such/python") == 0.0


def test_a_program_that_times_out_is_wrong_not_missing(bubblewrap):
    verdict = judge(
        lambda s: code(s, seconds=1.0, total_seconds=2.0), Submission("```python\nwhile True: pass\n```", TESTS)
    )
    assert verdict.score == 0.0


def test_a_sandbox_that_fails_is_missing_not_wrong():
    verdict = judge(lambda s: code(s, tier="process", python="/no/such/python"), Submission(ADD, TESTS))
    assert verdict.score is None
    assert "/no/such/python" in verdict.reason


def test_a_server_that_is_not_there_is_missing():
    with pytest.raises(SandboxError, match="cannot be asked"):
        code(Submission(ADD, TESTS), url="http://127.0.0.1:9")


def test_tests_that_are_no_tests_are_missing():
    for truth in (None, [], "", {"a": 1}, "[3]"):
        with pytest.raises(DataError):
            code(Submission(ADD, truth))


@pytest.mark.parametrize(
    "truth",
    [TESTS, json.dumps(TESTS), [{"input": "1", "output": "2"}], '[{"input": "1", "output": "2"}]', "assert f() == 1"],
)
def test_tests_may_be_lists_or_json_or_one_text(truth):
    assert len(read_tests(truth)) in (4, 1)


def test_a_slow_pass_is_worth_less_where_that_is_asked_for():
    # Of 4 s, a pass after 1 s is worth 3/4 and one after 2 s a half; the failure 0: (3/4 + 1/2 + 0) / 3 = 5/12.
    results = [TestResult(Status.PASSED, 1.0), TestResult(Status.PASSED, 2.0), TestResult(Status.WRONG, 0.1)]
    assert score_of(results, CodeConfig(seconds=4.0, slow_penalty=True)) == pytest.approx(5 / 12)
    assert score_of(results, CodeConfig(seconds=4.0)) == pytest.approx(2 / 3)
    assert score_of(results, CodeConfig(seconds=4.0, slow_penalty=True, threshold=0.7)) == 0.0


@pytest.mark.parametrize(
    ("program", "options"),
    [
        ("import time\ntime.sleep(1.5)", {"seconds": 1.0}),
        ("sum(range(10**12))", {"cpu_seconds": 0.5, "seconds": 15.0}),
        ("bytearray(200 * 2**20)", {"memory_mib": 150}),
        (
            "import threading, time\nfor _ in range(6): threading.Thread(target=time.sleep, args=(0.5,)).start()",
            {"processes": 4},
        ),
        ("print('x' * 3000)", {"output_kib": 2}),
        ("open('x', 'wb').write(bytes(3 * 2**20))", {"files_mib": 2}),
    ],
)
def test_every_limit_of_the_configuration_has_an_effect(bubblewrap, program, options):
    truth = [{"input": "", "output": "x" * 3000 if "output_kib" in options else ""}]
    completion = f"```python\n{program}\n```"
    assert code(Submission(completion, truth), **{**WIDE, **options}) == 0.0
    if "cpu_seconds" not in options:
        assert code(Submission(completion, truth), **WIDE) == 1.0


def test_the_total_time_is_that_of_all_tests(bubblewrap):
    truth = [{"input": "", "output": ""}] * 4
    completion = "```python\nimport time\ntime.sleep(1)\n```"
    assert code(Submission(completion, truth), **{**WIDE, "total_seconds": 2.5}) in (0.25, 0.5)


def test_the_verifier_is_registered_to_run_in_a_process_of_its_own():
    assert REGISTRY["code"].function is code
    assert not REGISTRY["code"].bounded


def group_of(texts: list[str], truth: list[str]) -> Group:
    completions = [Completion([Segment([1], [2], [0], [True])], StopReason.STOP, text=text) for text in texts]
    return Group(id="p", completions=completions, prompt=Prompt(id="p", token_ids=[1], ground_truth=truth))


@pytest.mark.slow
def test_training_scores_programs_with_the_options_of_the_configuration(bubblewrap):
    reward = RewardConfig(timeout=60.0, workers=2, code=CodeConfig(**WIDE, threshold=0.6))
    group = group_of([ADD, ADD.replace("+", "-"), "none", "```python\nwhile True: pass\n```"], TESTS)
    reward.code.seconds = 3.0
    with Scorer(reward, {"code": 1.0}) as scorer:
        report = scorer.score([group])
    assert group.rewards == [0.75, 0.0, 0.0, 0.0]  # three of four, one of four (0 - 0 is 0, not 1), none, too slow
    assert report.missing == 0


def test_a_run_does_not_begin_without_its_sandbox():
    with pytest.raises(ConfigError, match="does not run"):
        Scorer(RewardConfig(code=CodeConfig(tier="process", python="/no/such/python")), {"code": 1.0})
    with pytest.raises(ConfigError, match="shoal serve code"):
        Scorer(RewardConfig(code=CodeConfig(url="http://127.0.0.1:9")), {"code": 1.0})


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"total_seconds": 9.0}, "reward.timeout"),
        ({"seconds": 0.0}, "some time"),
    ],
)
def test_times_that_cannot_work_are_refused(options, line):
    overrides = ["reward.verifiers={code: 1}", *(f"reward.code.{key}={value}" for key, value in options.items())]
    with pytest.raises(ConfigError, match=line):
        load_config("story", overrides)
