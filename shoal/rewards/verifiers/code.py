"""The verifier `code`: a program is right where it passes its tests."""

from __future__ import annotations

import re
from functools import cache
from logging import getLogger
from typing import Any

from shoal.config.nodes.code import CodeConfig
from shoal.errors import ConfigError
from shoal.rewards.answers.code_tests import read_tests
from shoal.rewards.answers.thinking import answering_part
from shoal.rewards.base import Submission, verifier
from shoal.rewards.sandbox.client import run_there
from shoal.rewards.sandbox.core import Sandbox
from shoal.rewards.sandbox.limits import Limits
from shoal.rewards.sandbox.outcome import SandboxError, StdioTest, TestResult, Tests
from shoal.rewards.sandbox.process import NOT_HELD
from shoal.rewards.verifiers.strings import tagged_answer

logger = getLogger(__name__)

FENCE = re.compile(
    r"^(?P<before>[ \t]*(?:(?:[-*+]|\d+[.)])[ \t]+)*)(?P<fence>`{3,}|~{3,})[ \t]*(?P<language>[\w+#.-]*)[^\n`]*\n"
    r"(?P<program>.*?)(?:^[ \t]*(?P=fence)[`~]*[ \t]*$|\Z)",
    re.DOTALL | re.MULTILINE,
)
PYTHON = ("python", "python3", "py")


@verifier("code")
def code(submission: Submission, **options: Any) -> float:
    """Share of the tests that the program passes, 0 below the threshold; `options` are those of `CodeConfig`.

    The ground truth is in one of the forms of `code_tests`, or its JSON. A
    completion without a program scores 0, as does a program that times out. A sandbox that fails raises.
    """
    config = CodeConfig(**options)
    known = read_tests(submission.ground_truth)
    found = find_program(submission.text)
    if found is None:
        return 0.0
    program, tests = known.run(found)
    limits = Limits(
        seconds=config.seconds,
        cpu_seconds=config.cpu_seconds,
        memory_mib=config.memory_mib,
        processes=config.processes,
        output_kib=config.output_kib,
        files_mib=config.files_mib,
    )
    if config.url is None:
        results = _sandbox(config.tier, config.python).run(program, tests, limits, total_seconds=config.total_seconds)
    else:
        results = run_there(config.url, program, tests, limits, total_seconds=config.total_seconds, tier=config.tier)
    return score_of(results, config)


def check_code(config: CodeConfig) -> None:
    """Tries once whether programs can be run, so that a run does not begin without.

    Raises:
        ConfigError: the tier is missing or does not work here, or the server does not answer.
    """
    if config.url is None:
        if config.tier == "process":
            logger.warning("reward.code.tier=process: %s", NOT_HELD)
        _sandbox(config.tier, config.python)
        return
    try:
        run_there(
            config.url,
            "",
            Tests(stdio=(StdioTest("", ""),)),
            Limits(),
            total_seconds=config.total_seconds,
            tier=config.tier,
        )
    except SandboxError as error:
        raise ConfigError(f"reward.code.url: {error}; start one with `shoal serve code --port PORT`") from error


def score_of(results: list[TestResult], config: CodeConfig) -> float:
    """The pass rate, each pass worth (T - t) / T of T seconds where slowness is penalised; 0 below the threshold, which
    looks at the rate before the penalty. Penalty as in open-instruct's code verifier."""
    passed = [result for result in results if result.passed]
    if len(passed) < config.threshold * len(results):
        return 0.0
    if not config.slow_penalty:
        return len(passed) / len(results)
    return sum(max(0.0, config.seconds - result.seconds) / config.seconds for result in passed) / len(results)


def find_program(text: str) -> str | None:
    """The last ```python block after the thinking; else the last fenced block of any kind; else the last
    `<answer>`.

    A block that the end of the text cuts off counts, and one in a list loses the list's indentation. None where there
    is none of these.
    """
    part = answering_part(text)
    before = text[: text.rfind(part)]
    text = before[len(before.rstrip(" \t")) :] + part  # the space before an indented fence is needed
    blocks = [
        (match["language"].lower(), _outdented(match["program"], len(match["before"])))
        for match in FENCE.finditer(text.replace("\r\n", "\n"))
    ]
    python = [content for language, content in blocks if language in PYTHON]
    if python or blocks:
        return (python or [content for _, content in blocks])[-1]
    return tagged_answer(text)


def _outdented(program: str, columns: int) -> str:
    """Without as much space before each line as stands before the fence, where there is that much."""
    return re.sub(rf"^[ \t]{{1,{columns}}}", "", program, flags=re.MULTILINE) if columns else program


@cache
def _sandbox(tier: str, python: str | None) -> Sandbox:
    """One a process: opening it runs a probe."""
    return Sandbox(tier, python=python)
