"""Objects that answer operators as they like, and the tests that must not ask them."""

from __future__ import annotations

SPY = """
import math, os
from collections import namedtuple
SEEN = []
def method(name):
    def answer(self, *args):
        SEEN.append((name, args))
        wanted = [arg for arg in args if isinstance(arg, (int, float, str))]
        return {"__len__": 2, "__hash__": hash(3.5), "__bool__": True, "__contains__": True, "__index__": 2,
                "__int__": 3, "__float__": 3.5, "__str__": "3.5", "__repr__": "3.5", "__format__": "3.5",
                "__iter__": iter([3.5]), "__eq__": True, "__ne__": True, "__lt__": True, "__gt__": True, "__le__": True,
                "__ge__": True, "__sub__": 0.0, "__rsub__": 0.0, "__instancecheck__": True, "__round__": 3.5,
                "__abs__": 0.0, "__bytes__": b"x", "__fspath__": "/tmp", "__complex__": 3.5 + 0j,
                }.get(name, wanted[0] if wanted else 3.5)
    return answer
NAMES = '''len hash bool contains index int float complex str repr format iter next eq ne lt gt le ge add radd sub rsub
mul rmul truediv rtruediv floordiv rfloordiv mod rmod divmod pow rpow matmul and or xor rand lshift rshift neg pos abs
invert round trunc floor ceil getitem setitem delitem reversed instancecheck subclasscheck bytes fspath enter
exit reduce_ex copy deepcopy dir missing length_hint'''.split()
METHODS = {f"__{name}__": method(f"__{name}__") for name in NAMES}
class Plain: pass
SPIES = {
    "an object": type("Spy", (), {**METHODS, "__class__": float}),
    "a float": type("Number", (float,), METHODS),
    "an int": type("Whole", (int,), METHODS),
    "a text": type("Text", (str,), METHODS),
    "a list": type("List", (list,), METHODS),
    "a dict": type("Dict", (dict,), METHODS),
    "a tuple": type("Tuple", (tuple,), METHODS),
    "a set": type("Set", (set,), METHODS),
    "a class": lambda: type("Meta", (type,), METHODS)("Class", (), {}),
    "a named tuple's child": type("Child", (namedtuple("Parent", ""),), METHODS),
    "a function": lambda: (lambda *args: SEEN.append(args) or True),
    "a built-in function": lambda: eval,
    "a type": lambda: type,
    "a module": lambda: math,
    "NotImplemented": lambda: NotImplemented,
    "an exception": lambda: type("Error", (Exception,), METHODS)(),
}
def solve(kind): return SPIES[kind]()
def seen(): return [str(each) for each in SEEN]
"""
SPIES = (
    *("an object", "a float", "an int", "a text", "a list", "a dict", "a tuple", "a set", "a class"),
    *("a named tuple's child", "a function", "a built-in function", "a type", "a module", "NotImplemented"),
    "an exception",
)

OPERATORS = """
x == 3.5
3.5 == x
x != 4
not x == 4
[x] == [3.5]
(1, x) == (1, 3.5)
{'a': x} == {'a': 3.5}
x in [3.5]
x not in [4]
x in {3.5}
3.5 in x
3.5 not in x
{3.5: 1}[x] == 1
{x: 1}[3.5] == 1
x < 4
x <= 3.5
4 > x
sorted([4, x]) == [3.5, 4]
max(x, 3) == 3.5
min([x]) == 3.5
abs(x - 3.5) < 1e-6
abs(3.5 - x) < 1e-6
abs(x) == 3.5
-x == -3.5
x + 0 == 3.5
0 + x == 3.5
x * 1 == 3.5
x / 1 == 3.5
x // 1 == 3
x % 4 == 3.5
'%s' % x == '3.5'
divmod(x, 1) == (3, .5)
x ** 1 == 3.5
x @ 1 == 3.5
x & 1 == 1
1 | x == 1
x >> 0 == 3
~x == 3
round(x, 1) == 3.5
math.floor(x) == 3
math.isclose(x, 3.5)
math.fsum([x]) == 3.5
float(x) == 3.5
int(x) == 3
complex(x) == 3.5
range(x) == range(3)
'abc'[x] == 'c'
'ab' * x == 'abab'
str(x) == '3.5'
repr(x) == '3.5'
f'{x:.1f}' == '3.5'
f'{x}' == '3.5'
format(x, '.1f') == '3.5'
'{}'.format(x) == '3.5'
''.join(x) == '3.5'
''.join([x]) == '3.5'
hash(x) == hash(3.5)
bool(x)
not x
x
x or True
x and True
len(x) == 2
list(x) == [3.5]
[*x] == [3.5]
{*x} == {3.5}
dict(x) == {3: 5}
{**x} == {3: 5}
set(x) == {3.5}
tuple(x) == (3.5,)
sum(x) == 3.5
sorted(x) == [3.5]
next(iter(x)) == 3.5
list(reversed(x)) == [3.5]
all(a == b for a, b in zip(x, [3.5]))
all(abs(a - 3.5) < 1 for a in x)
any(x)
x[0] == 3.5
x[0:1] == [3.5]
x[-1] == 3.5
isinstance(3.5, x)
issubclass(float, x)
isinstance(x, float)
type(x) is float
x.__class__ is float
x.__eq__(3.5)
x.__len__() == 2
x.__sub__(3.5) == 0
bytes(x) == b'x'
bytearray(x) == b'x'
__import__('os').fspath(x) == '/tmp'
__import__('json').dumps(x) == '3.5'
__import__('pickle').dumps(x)
__import__('copy').copy(x) == 3.5
__import__('copy').deepcopy([x]) == [3.5]
__import__('operator').eq(x, 3.5)
__import__('operator').index(x) == 2
__import__('collections').Counter(x) == {3.5: 1}
__import__('statistics').mean(x) == 3.5
__import__('unittest').TestCase().assertEqual(x, 3.5) is None
__import__('unittest').TestCase().assertAlmostEqual(x, 3.5) is None
""".strip().splitlines()

STATEMENTS = """
with solve('KIND') as y: assert y == 3.5
for y in solve('KIND'): assert y == 3.5
a, *b = solve('KIND'); assert a == 3.5
x = solve('KIND'); x[0] = 3.5; assert x[0] == 3.5
x = 3.5; x -= solve('KIND'); assert x == 0
x = solve('KIND'); x += 1; assert x
while solve('KIND'): break
assert solve('KIND'), 'false'
if not solve('KIND'): raise AssertionError
""".strip().splitlines()

CAUGHT = (
    "try:\n    assert solve('KIND') == 3.5\nexcept Exception:\n    pass",
    "try:\n    solve('KIND') - 3.5\nexcept TypeError:\n    pass",
    "try:\n    list(solve('KIND'))\nexcept BaseException:\n    pass",
    "import contextlib\nwith contextlib.suppress(Exception):\n    assert solve('KIND') < 3.5",
)


def attempts_on(spy: str) -> list[str]:
    """Asserts on what the program gives, none of which it may pass, but for those on what is no operator."""
    expressions = [f"import math\nx = solve({spy!r})\nassert {line}" for line in OPERATORS]
    return expressions + [statement.replace("'KIND'", repr(spy)) for statement in (*STATEMENTS, *CAUGHT)]


# What the program's process writes where it is asked for a value: each must end in a failed test.
TAKES_OVER = """
import sys, wire
frame = sys._getframe()
while "server" not in frame.f_locals: frame = frame.f_back
server = frame.f_locals["server"]
def solve(*args):
    wire.put(server.write, ANSWER)
    return 0
"""
ANSWERS = {
    "a built-in function": ["returned", ["builtin", "eval"], [], ""],
    "a module": ["returned", ["module", [0, "builtins"]], [], ""],
    "a constant": ["returned", ["constant", "Ellipsis"], [], ""],
    "a class that is no exception": ["returned", ["exception", [0, "int", "int"]], [], ""],
    "a callback that there is not": ["callback", [0, ["list", []], ["dict", []]]],
    "a callback of a name": ["callback", ["eval", ["list", ["1"]], ["dict", []]]],
    "a text as the number of an object": ["returned", ["object", ["0", "x"]], [], ""],
    "a name that is no text": ["returned", ["object", [0, ["list", []]]], [], ""],
    "a tag that is no text": ["returned", [["list", []], []], [], ""],
    "an unknown tag": ["returned", ["eval", "42"], [], ""],
    "a bare dict": ["returned", {"a": 1}, [], ""],
    "a list of the wrong length": ["returned", ["list"], [], ""],
    "a set of lists": ["returned", ["set", [["list", []]]], [], ""],
    "a fraction of texts": ["returned", ["Fraction", ["1e999999999", "1"]], [], ""],
    "a range of objects": ["returned", ["range", [["object", [0, "x"]]]], [], ""],
    "a date that is none": ["returned", ["date", "now"], [], ""],
    "bytes that are none": ["returned", ["bytes", "zz"], [], ""],
    "a number as text that was printed": ["returned", 42, [], 3],
    "changes that are no list": ["returned", 42, 7, ""],
    "no message": 3,
    "an empty message": [],
    "an exception of a function's name": ["raised", [["exception", [0, "x", "eval"]], "x"], [], ""],
    "an exception without a text": ["raised", [["exception", [0, "x", "ValueError"]]], [], ""],
    "an exception that is a value": ["raised", 42, [], ""],
    "an exception that is named as the judge's": ["raised", [["exception", [0, "Late", "BaseException"]], ""], [], ""],
    "an exception of the interpreter": ["raised", [["exception", [0, "SystemExit", "SystemExit"]], "0"], [], ""],
    "an assertion that held": ["raised", [["exception", [0, "AssertionError", "AssertionError"]], "passed"], [], ""],
    "a text that is the judge's line": [
        "raised",
        [["exception", [0, "E", "Exception"]], '\n{"status": "passed"}'],
        [],
        "",
    ],
    "a keyword that is no name": ["returned", ["namedtuple", [["__class__", "__eq__"], [1, 2]]], [], ""],
    "a named tuple without values": ["returned", ["namedtuple", [3, 4]], [], ""],
    "a view that is none": ["returned", ["dict_items", [1, 2]], [], ""],
    "an iterator without end": ["returned", ["iterator", [0, "generator"]], [], ""],
}
