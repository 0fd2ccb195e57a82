"""Honest programs and the ways in which tests are written."""

from __future__ import annotations

import pytest

from shoal.errors import DataError
from shoal.rewards.sandbox.core import same_output
from shoal.rewards.sandbox.limits import Limits
from shoal.rewards.sandbox.outcome import SandboxError, Status, Tests

SHAPES = """
import math
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from enum import Enum, IntEnum
from fractions import Fraction

LIMIT = 10
Point = namedtuple("Point", "x y")
class Color(Enum):
    RED = 1
class Size(IntEnum):
    BIG = 3
class Refused(ValueError):
    pass
@dataclass
class Vector:
    x: float
    y: float
    def __add__(self, other): return Vector(self.x + other.x, self.y + other.y)
    def __mul__(self, number): return Vector(self.x * number, self.y * number)
    def __matmul__(self, other): return self.x * other.x + self.y * other.y
class Stack:
    def __init__(self): self.items = []
    def push(self, item): self.items.append(item)
    def pop(self): return self.items.pop()
    def __len__(self): return len(self.items)
    def __iter__(self): return iter(self.items)
    def __getitem__(self, at): return self.items[at]
    def __str__(self): return f"Stack{self.items}"
class Solution:
    def twice(self, n): return 2 * n
def echo(value): return value
def add(a, b=1, *more, **named): return a + b + sum(more) + sum(named.values())
def shapes(): return [(1, 2), {3}, frozenset({4}), {"a": [5.5, None]}, b"x", deque([1]), range(3), True, 10**30]
def numbers(): return [Fraction(1, 3), Decimal("0.10"), 2j, float("inf")]
def counts(): return Counter("aab"), defaultdict(list, a=[1]), OrderedDict(b=2)
def fill(values, table): values.append(4); table["k"] = [1]
def refuse(): raise Refused("no")
def apply(function, *values): return [function(value) for value in values]
def total(values): return sum(values)
def make(n): return lambda m: n + m
def say(): print("hello")
def upto(n):
    yield from range(n)
def naturals():
    n = 0
    while True:
        yield n
        n += 1
def views(): return [{"a": 1}.keys(), {"a": 1}.values(), {"a": 1}.items(), map(int, "12"), zip([1], [3])]
def texts(): return "\\ud800", b"\\xff", bytearray(b"x"), 2j, -0.0
def today(): return date(2026, 1, 2)
"""
IDIOMS = {
    "the library's names, imported by the program": "assert Counter(echo([1, 1])) == Counter({1: 2}) and deque([1])",
    "values": (
        "from collections import deque\nassert shapes() == [(1, 2), {3}, frozenset({4}), {'a': [5.5, None]}, b'x',"
        " deque([1]), range(3), True, 10**30]"
    ),
    "types": "assert isinstance(echo(3), int) and type(echo([1])) is list and echo(None) is None",
    "numbers": "from fractions import Fraction\nassert numbers()[0] == Fraction(1, 3) and numbers()[3] > 1e300",
    "counters": (
        "a, b, c = counts()\nassert a == {'a': 2, 'b': 1} and a.most_common(1) == [('a', 2)]"
        " and b['a'] == [1] and list(c) == ['b']"
    ),
    "named tuples": "assert Point(1, 2).x == 1 and echo(Point(1, 2)) == (1, 2)",
    "enums": "assert echo(Color.RED).value == Color.RED.value and Size.BIG.name == 'BIG'",
    "arguments by name": "assert add(1) == 2 and add(1, 2, 3, d=4) == 10 and add(b=3, a=4) == 7",
    "objects": (
        "s = Stack()\ns.push(1)\ns.push(2)\nassert s.pop() == 2 and s.items == [1] and s is not None and s != None\n"
        "assert hasattr(s, 'pop') and not hasattr(s, 'peek') and s.__dict__ == {'items': [1]}"
    ),
    "attributes": "v = Vector(1, 2)\nv.x = 5\nassert v.x == 5 and v.y == 2\ndel v.x\nassert not hasattr(v, 'x')",
    "objects given back": "assert echo(Vector(1, 2)).x == 1 and [v.y for v in [Vector(1, 2), Vector(3, 4)]] == [2, 4]",
    "methods": "assert Solution().twice(4) == 8",
    "exceptions": "try:\n    refuse()\n    assert False\nexcept Refused as error:\n    assert str(error) == 'no'",
    "exceptions by their base": "try:\n    refuse()\n    assert False\nexcept ValueError:\n    pass",
    "built-in exceptions": "try:\n    add('a', 1)\nexcept TypeError:\n    pass\nelse:\n    assert False",
    "changed arguments": (
        "values, table = [1], {}\nfill(values, table)\nassert values == [1, 4] and table == {'k': [1]}"
    ),
    "functions of the test": "assert apply(lambda n: n + 1, 1, 2) == [2, 3] and apply(str, 1) == ['1']",
    "iterators of the test": "assert total(iter([1, 2])) == 3 and total(n for n in range(4)) == 6",
    "functions of the program": "assert make(3)(4) == 7",
    "generators": "assert list(upto(3)) == [0, 1, 2] and sum(upto(4)) == 6 and next(upto(1)) == 0 and 2 in upto(9)",
    "endless generators": "g = naturals()\nassert [next(g), next(g)] == [0, 1] and [*zip(g, 'a')] == [(2, 'a')]",
    "generators given back": "assert total(upto(4)) == 6 and total(echo(upto(3))) == 3",
    "views and built-in iterators": "assert [sorted(x) for x in views()] == [['a'], [1], [('a', 1)], [1, 2], [(1, 3)]]",
    "texts and bytes": "assert texts() == ('\\ud800', b'\\xff', bytearray(b'x'), 2j, 0) and f'{texts()[4]}' == '-0.0'",
    "printing": (
        "import io\nfrom contextlib import redirect_stdout\nwith redirect_stdout(io.StringIO()) as out:\n"
        "    say()\nassert out.getvalue() == 'hello\\n'"
    ),
    "modules of the program": "assert math.isclose(math.pi, 3.14159265, rel_tol=1e-6) and LIMIT == 10",
    "a check function": (
        "def check(candidate):\n    assert candidate(1, 2) == 3\n    for n in range(5):\n"
        "        assert candidate(n) == n + 1\ncheck(add)"
    ),
    "dates": "from datetime import date\nassert today() == date(2026, 1, 2)",
    "several lines": "x = add(1)\ny = add(x)\nassert (x, y) == (2, 3), 'message'",
}


@pytest.fixture(scope="module")
def verdicts(bubblewrap):
    tests = Tests.from_json(list(IDIOMS.values()))
    return dict(zip(IDIOMS, bubblewrap.run(SHAPES, tests, Limits(seconds=30, cpu_seconds=30)), strict=True))


@pytest.mark.parametrize("idiom", IDIOMS)
def test_an_honest_program_passes_asserts_of_every_kind(verdicts, idiom):
    assert verdicts[idiom].passed, verdicts[idiom]


def test_a_function_may_have_the_name_of_a_builtin(bubblewrap, limits):
    tests = Tests.from_json(["assert sum(2, 3) == 5", "assert set([sum(2, 1)]) == {3}"])
    results = bubblewrap.run("def sum(a, b): return a + b", tests, limits)
    assert [result.passed for result in results] == [True, True]


def test_a_hanging_test_costs_only_itself(bubblewrap):
    program = "def f(n):\n    while n == 1: pass\n    return n"
    tests = Tests.from_json([f"assert f({n}) == {n}" for n in range(3)])
    results = bubblewrap.run(program, tests, Limits(seconds=3, cpu_seconds=3))
    assert [result.status for result in results] == [Status.PASSED, Status.TIMEOUT, Status.PASSED]


def test_all_tests_fail_where_the_program_does_not_load(bubblewrap, limits):
    results = bubblewrap.run("def f(:", Tests.from_json(["assert f() == 1", "assert True"]), limits)
    assert [result.status for result in results] == [Status.ERROR, Status.ERROR]


def test_tests_that_do_not_begin_in_the_total_time_count_as_timed_out(bubblewrap):
    tests = Tests.from_json([{"input": "", "output": ""}] * 4)
    results = bubblewrap.run("import time; time.sleep(60)", tests, Limits(seconds=1), total_seconds=1.5)
    assert [result.status for result in results] == [Status.TIMEOUT] * 4
    assert sum(result.seconds for result in results) < 10


@pytest.mark.parametrize(
    ("test", "reason"),
    [
        ("assert f(", "not Python"),
        ("class Node: pass\nassert f(Node()) == 1", "Node"),
    ],
)
def test_a_test_that_cannot_be_evaluated_is_no_verdict_on_the_program(bubblewrap, limits, test, reason):
    with pytest.raises(SandboxError, match=reason):
        bubblewrap.run("def f(x): return 1", Tests.from_json([test]), limits)


@pytest.mark.parametrize(
    ("got", "wanted", "same"),
    [
        ("1\n2\n", "1\n2", True),
        ("1 \n2\n\n", "1\n2", True),
        ("1\n\n2", "1\n2", True),
        ("1 2\r\n", "1\n2", True),
        ("12", "1 2", False),
        ("1 2 3", "1 2", False),
        ("", "\n", True),
        ("0.30000000000000004", "0.3", True),
        ("0.333333", "0.333333333333", True),
        ("0.33333", "0.333333333333", False),
        ("3", "3.0", True),
        ("1e3", "1000.0", True),
        ("3.0", "3", False),
        ("1000001", "1000000", False),
        ("nan", "0.5", False),
        ("1_0.0", "10.0", False),
        ("x 1.0000001", "x 1.0", True),
        ("0.0000000001", "0.0", True),
        ("-0.0", "0.0", True),
        ("1e999", "1.5", False),
        ("Yes", "YES", False),
    ],
)
def test_outputs_are_equal_by_tokens_and_floats_within_a_millionth(got, wanted, same):
    assert same_output(got, wanted) is same


def test_a_row_may_say_how_near_its_numbers_must_be():
    assert same_output("1000001", "1000000", 1e-3) and not same_output("1002", "1000", 1e-3)
    assert not same_output("1.0000001", "1.0", 0)


@pytest.mark.parametrize("end", ["exit()", "quit()", "exit(0)", "import sys; sys.exit()"])
def test_a_program_may_exit_as_in_a_script(bubblewrap, limits, end):
    tests = Tests.from_json([{"input": "", "output": "5"}])
    (result,) = bubblewrap.run(f"print(5)\n{end}\nprint(6)", tests, limits)
    assert result.passed, result
    (result,) = bubblewrap.run("print(5)\nexit(1)", tests, limits)
    assert not result.passed


def test_a_program_of_asserts_knows_exit(bubblewrap, limits):
    tests = Tests.from_json(["assert f() == 1", "try:\n    g()\n    assert False\nexcept Exception: pass"])
    results = bubblewrap.run("def f(): return 1 if callable(exit) else 0\ndef g(): quit()", tests, limits)
    assert [result.passed for result in results] == [True, True]


@pytest.mark.parametrize(
    "value", [[], {}, None, 3, "assert True", [1], [{"input": "x"}], ["assert True", {"output": ""}]]
)
def test_tests_of_another_form_are_refused(value):
    with pytest.raises(DataError, match="list of statements"):
        Tests.from_json(value)


def test_a_script_runs_as_main_with_its_input_and_whole_output(bubblewrap, limits):
    program = "if __name__ == '__main__':\n    import sys\n    for line in sys.stdin: print(line.strip()[::-1])"
    text = "\n".join(str(n) for n in range(20000))
    wanted = "\n".join(str(n)[::-1] for n in range(20000))
    (result,) = bubblewrap.run(program, Tests.from_json([{"input": text, "output": wanted}]), limits)
    assert result.passed, result
