"""One program with its tests, in one tier."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from io import FileIO
from itertools import chain
from math import inf, isclose

from shoal.errors import ConfigError
from shoal.rewards.sandbox.interpreter import find_interpreter
from shoal.rewards.sandbox.launch import Guest, pipe, sealed_memory
from shoal.rewards.sandbox.limits import Limits
from shoal.rewards.sandbox.outcome import SandboxError, Status, StdioTest, TestResult, Tests
from shoal.rewards.sandbox.tiers import find_tier
from shoal.rewards.sandbox.watch import Watched, drain, watch

SLACK = 1.0  # seconds by which the judge may be late before it is ended from outside
BY_LIMIT = (128 + signal.SIGXCPU, 128 + signal.SIGKILL)  # exit statuses of a process that the kernel ended
INTEGER, NUMBER = re.compile(r"[+-]?[0-9]+"), re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
FLOAT_TOLERANCE, NEAR_ZERO = 1e-6, 1e-9  # relative, where the expected number is a float; absolute, beside 0
PROBE = "import decimal, os, sys\nprint(decimal.Decimal(input()) * 2, file=sys.stdout)"


class Sandbox:
    """Runs programs, from any number of threads. It holds nothing open.

    `python` is the Python that runs the programs, with its packages; None: this process's own, standard library only.

    Raises:
        ConfigError: the tier is missing, or a first honest program does not come out right in it.
    """

    def __init__(self, tier: str = "bubblewrap", *, python: str | None = None) -> None:
        self.tier = find_tier(tier)
        self.interpreter = find_interpreter(python)
        try:
            (result,) = self.run(PROBE, Tests(stdio=(StdioTest("21.25", "42.50"),)), Limits(seconds=20, cpu_seconds=20))
        except SandboxError as error:
            raise ConfigError(f"tier {tier} does not work here: {error}") from error
        if not result.passed:
            raise ConfigError(
                f"tier {tier} does not work here with {self.interpreter.command[0]}: {result.detail}. Can an "
                "unprivileged user reach that Python? reward.code.python names another"
            )

    def run(self, program: str, tests: Tests, limits: Limits, *, total_seconds: float = inf) -> list[TestResult]:
        """One result per test, in order. Tests that do not begin within `total_seconds` count as timed out.

        Stdin/stdout tests each run the program anew. Asserts share one process of the program's, as in a test file;
        after one that hangs or ends the process, the others get a new one.

        Raises:
            SandboxError: nothing can be said about the program.
        """
        ends = time.monotonic() + total_seconds
        results: list[TestResult] = []
        while len(results) < len(tests):
            left = ends - time.monotonic()
            if left <= 0:
                late = TestResult(Status.TIMEOUT, 0.0, f"not begun in the {total_seconds:g} s of all tests")
                results += [late] * (len(tests) - len(results))
            elif tests.stdio:
                results.append(self._run_stdio(program, tests.stdio[len(results)], limits, left))
            else:
                results += self._run_asserts(program, tests.asserts[len(results) :], limits, left)
        return results

    def _run_stdio(self, program: str, test: StdioTest, limits: Limits, left: float) -> TestResult:
        most = limits.output_kib * 1024
        with self._start("script", program, limits, 1, test.input) as guest:
            streams = [guest.output, guest.errors]
            watched = watch([guest], guest, streams, limits, min(limits.seconds, left), limits.cpu_seconds)
            status = guest.end()
            output, errors = (watched.texts[stream] + drain(stream, most) for stream in streams)
        if watched.stopped is not None:
            return TestResult(watched.stopped, watched.seconds, watched.detail)
        if len(output) + len(errors) > most:
            return TestResult(Status.LIMIT, watched.seconds, f"more than {limits.output_kib} KiB of output")
        if status != 0:
            last = errors.decode(errors="replace").strip().splitlines()[-1:] or [""]
            return TestResult(Status.ERROR, watched.seconds, f"exit status {status}: {last[0]:.200}")
        if not same_output(output.decode(errors="replace"), test.output, test.tolerance):
            return TestResult(Status.WRONG, watched.seconds, "another output")
        return TestResult(Status.PASSED, watched.seconds)

    def _run_asserts(self, program: str, tests: Sequence[str], limits: Limits, left: float) -> list[TestResult]:
        """Results of the first tests, at least one: as far as one process of the program's came."""
        with ExitStack() as stack:
            pipes = [pipe() for _ in range(3)]
            for end in chain.from_iterable(pipes):
                stack.enter_context(end)
            (question, ask), (reply, answer), (results, report) = pipes
            server = stack.enter_context(self._start("serve", program, limits, len(tests), read=question, write=answer))
            more: dict[str, FileIO | float] = {"read": reply, "write": ask, "results": report}
            more["seconds"] = min(limits.seconds, left)
            judge = stack.enter_context(self._start("judge", json.dumps(tests), limits, len(tests), **more))
            lines = results.fileno()
            streams = [lines, server.errors, judge.errors]
            seconds = min(limits.seconds * len(tests) + SLACK, left)
            watched = watch([server, judge], judge, streams, limits, seconds, limits.cpu_seconds * len(tests))
            status = judge.end()
            said = watched.texts[lines] + drain(lines, limits.output_kib * 1024)
        return _verdicts(said, len(tests), watched, status)

    def _start(
        self, mode: str, source: str, limits: Limits, tests: int, stdin: str = "", /, **more: FileIO | float
    ) -> Guest:
        """A guest that holds `source`, and the pipes among `more`, which are closed here."""
        rlimits = limits.rlimits(tests=tests, other_processes=self.tier.other_processes())
        pipes = {name: file for name, file in more.items() if isinstance(file, FileIO)}
        waits, go = pipe()
        files = {"go": waits, "source": sealed_memory(source.encode(errors="replace")), **pipes}
        numbers = {name: file.fileno() for name, file in files.items()}
        order = repr({"limits": rlimits, "mode": mode, "exposed": self.tier.exposed, **more, **numbers})
        try:
            launch = self.tier.launch(self.interpreter, limits, order)
            with sealed_memory(stdin.encode(errors="replace")) as given:
                return Guest(launch, passed=list(numbers.values()), stdin=given, go=go, capture=mode == "script")
        finally:
            for file in files.values():
                file.close()


def same_output(got: str, wanted: str, tolerance: float | None = None) -> bool:
    """Whether both have the same tokens, whatever space is between them; numbers as `StdioTest.tolerance` says."""
    ours, theirs = got.split(), wanted.split()
    return len(ours) == len(theirs) and all(
        one == other or _near(one, other, tolerance) for one, other in zip(ours, theirs, strict=True)
    )


def _near(got: str, wanted: str, tolerance: float | None) -> bool:
    if not NUMBER.fullmatch(wanted) or not NUMBER.fullmatch(got) or (tolerance is None and INTEGER.fullmatch(wanted)):
        return False
    within = FLOAT_TOLERANCE if tolerance is None else tolerance
    return isclose(float(got), float(wanted), rel_tol=within, abs_tol=min(within, NEAR_ZERO))


def _verdicts(text: bytes, tests: int, watched: Watched, status: int) -> list[TestResult]:
    """From the judge's lines; `status` is how it ended.

    Raises:
        SandboxError: the judge failed, or a test cannot be judged.
    """
    results: list[TestResult] = []
    begun = False
    for line in text.splitlines():
        said = json.loads(line)
        word, seconds, detail = said["status"], said["seconds"], said["detail"]
        if word == "begun":
            begun = True
            continue
        if word == "unsupported":
            raise SandboxError(f"a test cannot be evaluated: {detail}")
        if word == "load":
            failed = TestResult(Status.TIMEOUT if detail.startswith("timeout") else Status.ERROR, seconds, detail)
            return [failed] * tests
        results.append(TestResult(Status(word), seconds, detail))
    if len(results) == tests:
        return results
    if watched.stopped is not None:
        return [*results, TestResult(watched.stopped, watched.seconds, watched.detail)]
    if status in BY_LIMIT:
        return [*results, TestResult(Status.LIMIT, watched.seconds, "the values for the test are too large to compare")]
    if not begun:
        raise SandboxError(f"the judge of the tests ended with status {status}")
    if status != 0 or not results:
        # It ran before, and what it works on is the program's: a test whose judge ends has failed.
        return [*results, TestResult(Status.ERROR, watched.seconds, f"the test ended with status {status}")]
    return results
