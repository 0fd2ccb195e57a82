"""An object of the program's own is no value: no operator on it reaches the program, and none passes a test."""

from __future__ import annotations

import pytest
from forged_values import ANSWERS, SPIES, SPY, TAKES_OVER, attempts_on

from shoal.rewards.sandbox.limits import Limits
from shoal.rewards.sandbox.outcome import Status, Tests

WIDE = Limits(seconds=60, cpu_seconds=60)
ASSERT = "assert solve(20, 22) == 42"


@pytest.mark.parametrize("spy", SPIES)
def test_no_operator_on_an_object_of_the_program_passes_or_reaches_it(bubblewrap, spy):
    tests = [*attempts_on(spy), "assert seen() == []"]
    *results, untouched = bubblewrap.run(SPY, Tests.from_json(tests), WIDE, total_seconds=200)
    assert [test for test, result in zip(tests, results, strict=False) if result.passed] == []
    assert untouched.passed, untouched


def test_what_is_no_operator_works_on_an_object_of_the_program(bubblewrap):
    tests = ["x = solve('an object')\nassert x is not None and not x == None and isinstance(seen(), list)"]
    (result,) = bubblewrap.run(SPY, Tests.from_json(tests), WIDE)
    assert result.passed, result


@pytest.mark.parametrize(
    "test",
    [
        "secret = 42\nassert solve()('secret') == 42",
        "import builtins\nassert builtins.eval is solve()",
        "assert solve() is eval",
        "assert type(solve()) is type(eval)",
    ],
)
def test_a_returned_function_is_not_the_judges_own(bubblewrap, limits, test):
    (result,) = bubblewrap.run("def solve(): return eval", Tests.from_json([test]), limits)
    assert not result.passed


def test_a_returned_module_is_not_the_judges_own(bubblewrap, limits):
    program = "import sys, builtins\ndef solve(): return [sys, builtins, sys.__dict__, vars(builtins)]"
    tests = [
        "import sys\nassert solve()[0] is sys",
        "import builtins\nassert solve()[1] is builtins",
        "import sys\nassert solve()[2]['modules'] is sys.modules",
        "mark = 'of the judge'\nassert solve()[3]['globals']()['mark'] == 'of the judge'",
        "import remote\nassert solve()[0].modules.get('remote') is remote",
    ]
    assert not any(result.passed for result in bubblewrap.run(program, Tests.from_json(tests), limits))


@pytest.mark.parametrize("name", ANSWERS)
def test_a_forged_message_of_the_program_is_a_failed_test(bubblewrap, name):
    program = TAKES_OVER.replace("ANSWER", repr(ANSWERS[name]), 1)
    (result,) = bubblewrap.run(program, Tests.from_json([ASSERT]), Limits(seconds=4, cpu_seconds=4))
    assert result.status in (Status.ERROR, Status.WRONG, Status.TIMEOUT), result


def test_a_forged_message_with_the_right_value_would_be_believed(bubblewrap, limits):
    """So that the refusals above are of the messages' forms."""
    program = TAKES_OVER.replace("ANSWER", repr(["returned", 42, [], ""]), 1)
    (result,) = bubblewrap.run(program, Tests.from_json([ASSERT]), limits)
    assert result.passed


@pytest.mark.parametrize(
    "name",
    ["__builtins__", "__name__", "assert", "AssertionError", "abs", "print", "isinstance", "check", "math"],
)
def test_a_program_cannot_define_a_name_that_the_test_takes_from_python(bubblewrap, limits, name):
    program = (
        "import serve\nreal = serve.put\n"
        "def forged(descriptor, message):\n"
        "    if message[0] == 'loaded':\n"
        f"        message[1] += [[{name!r}, ['object', [0, 'function']], None], [{name!r}, 0, 'os']]\n"
        "    return real(descriptor, message)\n"
        "serve.put = forged\ndef solve(x): return 0"
    )
    test = (
        "import math\ndef check(candidate):\n    assert type(candidate(1)) is int and abs(candidate(1) - 3) < 1e-6\n"
        "    assert math.isclose(candidate(1), 3)\nif __name__ == '__main__': check(solve)\nprint('done')"
    )
    (result,) = bubblewrap.run(program, Tests.from_json([test]), limits)
    assert result.status is Status.WRONG, result


def test_what_the_library_can_compare_is_not_compared_by_the_program(bubblewrap, limits):
    program = (
        "from math import isclose\nfrom collections import Counter\nimport math, collections\ndef solve(x): return 0\n"
    )
    patched = program + "math.isclose = isclose = lambda *args, **kwargs: True\n"
    tests = Tests.from_json(["assert isclose(solve(1), 3.5)", "assert Counter([solve(1)]) == Counter([3.5])"])
    assert [result.status for result in bubblewrap.run(program, tests, limits)] == [Status.WRONG] * 2
    assert [result.passed for result in bubblewrap.run(patched, tests, limits)] == [False, False]
