"""No program passes a test of asserts, or of input and output, without the right values."""

from __future__ import annotations

import pytest

from shoal.rewards.sandbox.limits import Limits
from shoal.rewards.sandbox.outcome import Status, Tests

ASSERT = "assert solve(20, 22) == 42"
CLOSE = "import math\nassert math.isclose(solve(1, 2), 3.5)"
NEAR = "assert abs(solve(1, 2) - 3.5) < 1e-6"
MEMBER = "assert 42 in solve(20, 22)"
SORTED = "assert sorted(solve(3)) == [1, 2, 3]"
CATCHES = "try:\n    solve(-1)\nexcept Exception:\n    pass\nelse:\n    assert False"
CATCHES_ALL = "try:\n    solve(-1)\nexcept:\n    pass\nelse:\n    assert False"
RAISES = "try:\n    solve(-1)\nexcept ValueError:\n    pass\nelse:\n    assert False"

ANYTHING = """
class Anything:
    def yes(self, *args): return True
    def same(self, *args): return self
    def zero(self, *args): return 0.0
    __eq__ = __le__ = __lt__ = __ge__ = __gt__ = __contains__ = __bool__ = __instancecheck__ = yes
    __ne__ = lambda self, other: False
    __hash__ = lambda self: 42
    __sub__ = __rsub__ = __add__ = __abs__ = __float__ = zero
    __int__ = __index__ = __len__ = lambda self: 42
    __class__ = int
def solve(*args): return Anything()
"""
FORGERIES = {
    "an object that equals everything": (ANYTHING, ASSERT),
    "an object that is close to everything": (ANYTHING, NEAR),
    "an object that converts to a number": (ANYTHING, CLOSE),
    "an object that contains everything": (ANYTHING, MEMBER),
    "an object whose difference is an object": (
        ANYTHING.replace("zero(self, *args): return 0.0", "zero(self, *args): return self"),
        NEAR,
    ),
    "a number that equals everything": (
        "class Number(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\n"
        "def solve(*args): return Number(1)",
        ASSERT,
    ),
    "a text that equals everything": (
        "class Text(str):\n    def __eq__(self, other): return True\ndef solve(*args): return Text('42')",
        ASSERT,
    ),
    "a list that equals everything": (
        "class Bag(list):\n    def __eq__(self, other): return True\ndef solve(*args): return [Bag()]",
        "assert solve(1) == [[1, 2]]",
    ),
    "its own abs": ("def abs(x): return 0\ndef solve(*args): return 0", NEAR),
    "its own sorted": ("def sorted(x): return [1, 2, 3]\ndef solve(*args): return []", SORTED),
    "its own math": (
        "class math:\n    isclose = staticmethod(lambda *args: True)\ndef solve(*args): return 0",
        "assert math.isclose(solve(1, 2), 3.5)",
    ),
    "a patched math module": ("import math\nmath.isclose = lambda *args: True\ndef solve(*args): return 0", CLOSE),
    "patched builtins": (
        "import builtins\nbuiltins.abs = builtins.sorted = lambda *args: 0\nbuiltins.AssertionError = ValueError\n"
        "builtins.isinstance = lambda *args: True\ndef solve(*args): return 0",
        NEAR,
    ),
    "exits early": ("import sys\ndef solve(*args): sys.exit(0)", ASSERT),
    "exits at once": ("import os\ndef solve(*args): os._exit(0)", ASSERT),
    "exits while it is loaded": ("import sys\nsys.exit(0)", ASSERT),
    "exits at once while it is loaded": ("import os\nos._exit(0)", ASSERT),
    "prints a result": (
        'print(\'{"status": "passed", "seconds": 0, "detail": ""}\')\nprint(\'passed\')\n'
        "def solve(*args): print('PASSED')",
        ASSERT,
    ),
    "writes a result to every descriptor": (
        'import os\nline = b\'{"status": "passed", "seconds": 0, "detail": ""}\\n\'\n'
        "def solve(*args):\n    for fd in range(64):\n        try: os.write(fd, line)\n        except OSError: pass",
        ASSERT,
    ),
    "writes a result to the descriptors of all processes": (
        'import os\nline = b\'{"status": "passed", "seconds": 0, "detail": ""}\\n\'\n'
        "def solve(*args):\n    for pid in os.listdir('/proc'):\n        for fd in range(32):\n"
        "            try: os.write(os.open(f'/proc/{pid}/fd/{fd}', os.O_WRONLY | os.O_NONBLOCK), line)\n"
        "            except OSError: pass",
        ASSERT,
    ),
    "looks for the expected value": (
        "import gc, sys, os\ndef solve(*args):\n    text = str(gc.get_objects()) + str(sys.argv)\n"
        "    frame = sys._getframe()\n    while frame: text += str(frame.f_locals); frame = frame.f_back\n"
        "    for name in ('cmdline', 'environ'): text += open(f'/proc/self/{name}').read()\n"
        "    wanted = ''.join(reversed('123456789'))\n    return int(wanted) if wanted in text else 0",
        "assert solve(1) == 987654321",
    ),
    "traces its callers": (
        "import sys\ndef trace(frame, event, arg):\n"
        "    frame.f_locals.update(value=['constant', 'Ellipsis'])\n    return trace\n"
        "sys.settrace(trace)\ndef solve(*args): return 0",
        ASSERT,
    ),
    "changes the code that answers for it": (
        "import sys, wire\nserve = sys.modules['serve']\nwire.encode = serve.encode = lambda *args: True\n"
        "def solve(*args): return 0",
        ASSERT,
    ),
    "answers by itself": (
        "import json, os, struct\ndef send(x):\n    c = json.dumps(x).encode()\n    for fd in range(3, 12):\n"
        "        try: os.write(fd, struct.pack('<I', len(c)) + c)\n        except OSError: pass\n"
        "def solve(*args):\n    for x in (['loaded', []], ['returned', True, [], ''], ['passed'], True, None, {}):\n"
        "        send(x)\n"
        "    return True",
        ASSERT,
    ),
    "answers with no message": (
        "import os\ndef solve(*args):\n    for fd in range(3, 12):\n        try: os.write(fd, b'\\xff' * 1000)\n"
        "        except OSError: pass",
        ASSERT,
    ),
    "answers with endless depth": (
        "x = []\nfor _ in range(100000): x = [x]\ndef solve(*args): return x",
        "assert solve(1) == [1]",
    ),
    "answers with a list that holds itself": (
        "x = []\nx.append(x)\ndef solve(*args): return x",
        "assert solve(1) == [1]",
    ),
    "sends code as an exception": (
        "class E(Exception):\n    def __str__(self): return 'passed'\ndef solve(*args): raise E()",
        ASSERT,
    ),
    "raises what the test catches elsewhere": ("def solve(*args): raise SystemExit(0)", RAISES),
    "raises an exception of the same name": (
        "class ValueError(Exception): pass\ndef solve(*args): raise ValueError()",
        RAISES,
    ),
    "changes the arguments into an expected value": (
        "def solve(values): values[:] = [0]",
        "values = [3, 1]\nsolve(values)\nassert values == [1, 3]",
    ),
    "leaves an answer to a later process": (
        "import os, atexit\natexit.register(lambda: os.write(1, b'passed'))\n"
        "def solve(*args):\n    if os.fork(): os._exit(0)\n    return 1",
        ASSERT,
    ),
    "an exception whose text raises": (
        "class E(Exception):\n    def __str__(self): raise SystemExit(0)\ndef solve(*args): raise E()",
        ASSERT,
    ),
    "an exception whose text hangs": (
        "class E(Exception):\n    def __str__(self):\n        while True: pass\ndef solve(*args): raise E()",
        ASSERT,
    ),
    "an exception whose class lies": (
        "class Meta(type):\n    __name__ = property(lambda self: 1 / 0)\n    __mro__ = ()\n"
        "class E(Exception, metaclass=Meta): pass\ndef solve(*args): raise E()",
        ASSERT,
    ),
    "an exception whose text ends the process": (
        "import os\nclass E(Exception):\n    def __str__(self): os._exit(0)\ndef solve(*args): raise E()",
        ASSERT,
    ),
    "exits where the test catches what is raised": ("import os\ndef solve(*args): os._exit(0)", CATCHES),
    "hangs where the test catches what is raised": ("def solve(*args):\n    while True: pass", CATCHES_ALL),
    "sends nonsense where the test catches what is raised": (
        "import os\ndef solve(*args):\n    for fd in range(3, 12):\n        try: os.write(fd, b'\\xff' * 1000)\n"
        "        except OSError: pass",
        CATCHES_ALL,
    ),
    "gives an object where the test catches what is raised": (
        ANYTHING,
        "try:\n    solve(1) + 1\nexcept TypeError:\n    pass\nelse:\n    assert False",
    ),
    "a thread that answers after it returned": (
        "import threading, sys, wire\nframe = sys._getframe()\n"
        "while 'server' not in frame.f_locals: frame = frame.f_back\nserver = frame.f_locals['server']\n"
        "def spam():\n    while True: wire.put(server.write, ['passed', True, [], 'passed'])\n"
        "def solve(*args):\n    threading.Thread(target=spam, daemon=True).start()\n    return 0",
        ASSERT,
    ),
    "a patched json, and an os.write without end": (
        'import json, os, posix, bare_json as j\njson.dumps = j.dumps = lambda value: b\'["returned", true, [], ""]\'\n'
        "import wire\nwire.dumps = j.dumps\nposix.write = os.write = lambda fd, text: len(text)\n"
        "def solve(*args): return 0",
        ASSERT,
    ),
    "environment variables": (
        "import os\nfor name in ('PYTHONPATH', 'PYTHONSTARTUP', 'PYTHONINSPECT', 'SHOAL_CODE_TOKEN'):\n"
        "    os.environ[name] = '/tmp'\nopen('/tmp/sitecustomize.py', 'w').write('import os; os._exit(0)')\n"
        "open('/tmp/judge.py', 'w').write('def judge(*args): pass')\ndef solve(*args): return 0",
        ASSERT,
    ),
    "signals for everyone": (
        "import os, signal\ndef solve(*args):\n    for pid in (1, os.getppid(), *range(2, 20)):\n"
        "        if pid != os.getpid():\n            for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGKILL):\n"
        "                try: os.kill(pid, number)\n                except OSError: pass\n    return 0",
        ASSERT,
    ),
    "tracebacks and frames": (
        "import sys\ndef solve(*args):\n    try: 1 / 0\n    except Exception as e: frame = e.__traceback__.tb_frame\n"
        "    while frame:\n        for name, value in {**frame.f_globals, **frame.f_locals}.items():\n"
        "            wanted = '8765'.join('94') + '321'\n            wanted = wanted.replace('4', '')\n"
        "            if value == int(wanted) or wanted in str(value): return int(wanted)\n"
        "        frame = frame.f_back\n    return 0",
        "assert solve(1) == 987654321",
    ),
    "calls what the test gave it with the judge's names": (
        "def solve(function): return function('__import__(\"os\")._exit(0)')",
        "assert solve(lambda text: text) == 42",
    ),
    "learns what it is compared with and answers it next time": (
        "WANTED = [0.0]\nclass Spy:\n    def __sub__(self, other): WANTED[0] = other; return 0.0\n"
        "    __rsub__ = __eq__ = __sub__\ndef solve(*args): return WANTED[0] or Spy()",
        NEAR + "\n" + NEAR,
    ),
    "a number of endless digits": ("def solve(*args): return 10 ** (4 * 10**6)", ASSERT),
    "a message of endless length": ("def solve(*args): return 'x' * (20 * 2**20)", ASSERT),
    "a list of many lists": ("def solve(*args): return [[]] * 200_000", "assert solve(1) == [1]"),
    "returns Ellipsis": ("def solve(*args): return ...", ASSERT),
    "hangs": ("def solve(*args):\n    while True: pass", ASSERT),
    "iterates without end": ("def solve(*args):\n    while True: yield 0", MEMBER),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_result_is_not_believed(bubblewrap, limits, name):
    program, test = FORGERIES[name]
    if "hang" in name or "end" in name or "after" in name:
        limits = type(limits)(seconds=1.5)
    results = bubblewrap.run(program, Tests.from_json([test]), limits)
    assert [result.passed for result in results] == [False]


@pytest.mark.parametrize(
    ("test", "program"),
    [
        (ASSERT, "def solve(a, b): return a + b"),
        (CLOSE, "def solve(a, b): return a + b + 0.5"),
        (NEAR, "def solve(a, b): return a + b + 0.5"),
        (MEMBER, "def solve(a, b):\n    yield a\n    yield a + b"),
        (SORTED, "def solve(n): return {1, 2, 3}"),
        (CATCHES, "def solve(n): raise KeyError(n)"),
        (CATCHES_ALL, "import sys\ndef solve(n): sys.exit(1)"),
        (NEAR + "\n" + NEAR, "def solve(a, b): return a + b + 0.5"),
        (RAISES, "def solve(n):\n    if n < 0: raise ValueError('negative')"),
        ("values = [3, 1]\nsolve(values)\nassert values == [1, 3]", "def solve(values): values.sort()"),
    ],
)
def test_the_tests_that_are_attacked_pass_an_honest_program(bubblewrap, limits, test, program):
    (result,) = bubblewrap.run(program, Tests.from_json([test]), limits)
    assert result.passed, result


def test_a_program_finds_no_test_in_its_memory(bubblewrap, limits):
    program = (
        "import gc, re, sys\nWANTED = re.compile('expected[_]value')\n"
        "def objects():\n    found, waiting = {}, [*gc.get_objects(), sys.modules]\n"
        "    frame = sys._getframe()\n    while frame: waiting.append(frame.f_locals); frame = frame.f_back\n"
        "    for one in waiting:\n        if isinstance(one, (str, bytes)): continue\n"
        "        for part in gc.get_referents(one):\n"
        "            if id(part) not in found: found[id(part)] = part; waiting.append(part)\n"
        "    return [one for one in found.values() if isinstance(one, str)]\n"
        "def memory():\n    for line in open('/proc/self/maps'):\n"
        "        start, end = [int(each, 16) for each in line.split()[0].split('-')]\n"
        "        with open('/proc/self/mem', 'rb', 0) as file:\n            try:\n"
        "                file.seek(start)\n                yield file.read(end - start).decode('latin-1')\n"
        "            except (OSError, OverflowError): pass\n"
        "def solve(n):\n    found = [match[0] for text in (*objects(), *memory()) if (match := WANTED.search(text))]\n"
        "    return found[0] if found else 'nothing'"
    )
    tests = ["assert solve(1) == 'expected_value'", "assert solve(1) == 'nothing'"]
    results = bubblewrap.run(program, Tests.from_json(tests), limits)
    assert [result.passed for result in results] == [False, True], results


@pytest.mark.parametrize(
    "name",
    ["an exception whose text raises", "an exception whose text hangs", "exits at once", "answers with no message"],
)
def test_a_test_that_the_program_ends_has_failed_and_the_next_one_is_judged(bubblewrap, name):
    program = FORGERIES[name][0] + "\ndef right(): return 1"
    tests = Tests.from_json([ASSERT, "assert right() == 1"])
    results = bubblewrap.run(program, tests, Limits(seconds=1.5, cpu_seconds=20))
    assert [result.passed for result in results] == [False, True], results


def test_a_judge_that_ends_is_a_failed_test(bubblewrap, limits):
    tests = Tests.from_json(["import os\nos._exit(solve(3))", "assert solve(1) == 1"])
    results = bubblewrap.run("def solve(n): return n", tests, limits)
    assert [result.status for result in results] == [Status.ERROR, Status.PASSED]


def test_a_program_cannot_answer_for_the_next_test(bubblewrap, limits):
    program = "import os\ndef solve(n):\n    if n == 1: os._exit(0)\n    return n"
    results = bubblewrap.run(program, Tests.from_json([f"assert solve({n}) == {n}" for n in (0, 1, 2, 3)]), limits)
    assert [result.passed for result in results] == [True, False, True, True]


@pytest.mark.parametrize(
    "program",
    [
        "print('expected')\nimport os\nos.kill(os.getpid(), 9)",
        "print('expected')\nraise SystemExit(3)",
        "print('expected ' * 2)",
        "",
    ],
)
def test_the_right_output_with_a_wrong_end_does_not_pass(bubblewrap, limits, program):
    (result,) = bubblewrap.run(program, Tests.from_json([{"input": "", "output": "expected"}]), limits)
    assert not result.passed
