"""Which names of a test mean the program's definitions, and which mean Python's own.

A program that defines `abs` or `math` must not thereby change how its answers are compared, yet a task may ask for a
function called `sum`. So a built-in name is the program's only where the test calls no other function of the program's:
then it is the innermost call on the left, as `sum` in `assert set(sum(2, 3)) == {5}`.
"""

import _ast as ast  # what `ast` itself imports takes longer than a short program
import builtins
import sys

# Modules without side effects. What a test calls by one of their names, and the program imported from there, is the
# judge's own: a program that was asked whether two numbers are close would be told what is expected.
OWN_MODULES = (
    *("math", "cmath", "collections", "typing", "decimal", "fractions", "functools", "itertools", "datetime", "copy"),
    *("string", "statistics", "bisect", "heapq"),
)
OUTSIDE_MODULES = {"np": "numpy", "numpy": "numpy"}  # likewise, where the programs' Python has them
ONLY_TREE = 0x400  # ast.PyCF_ONLY_AST


def used_names(tests: list[str]) -> tuple[set[str], set[str]]:
    """Names that the tests take from the program, and those of standard modules that they use as Python's own."""
    trees = []
    for test in tests:
        try:
            trees.append(compile(test, "test.py", "exec", ONLY_TREE, dont_inherit=True))
        except (SyntaxError, ValueError):
            continue  # the judge reports it
    loaded: set[str] = set()
    stored: set[str] = set()
    modules: set[str] = set()
    for tree in trees:
        for node in _nodes(tree):
            if isinstance(node, ast.Name):
                (loaded if isinstance(node.ctx, ast.Load) else stored).add(node.id)
            elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                stored.add(node.name)
            elif isinstance(node, ast.arg):
                stored.add(node.arg)
            elif isinstance(node, ast.alias):
                stored.add((node.asname or node.name).partition(".")[0])
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                modules.add(node.value.id)
    called = {name for tree in trees for node in _nodes(tree) if (name := _called(node))}
    ours = {name for name in loaded if hasattr(builtins, name)}
    standard = {name for name in modules - called - stored if name in {*sys.stdlib_module_names, *OUTSIDE_MODULES}}
    theirs = loaded - ours - standard
    if not theirs - stored:
        theirs |= {name for tree in trees if (name := _subject(tree))}
    return theirs, standard


def _nodes(tree: ast.AST) -> list[ast.AST]:
    """A tree's nodes, those nearer to its root first."""
    nodes = [tree]
    for node in nodes:
        for name in node._fields:
            value = getattr(node, name, None)
            nodes += [part for part in (value if isinstance(value, list) else [value]) if isinstance(part, ast.AST)]
    return nodes


def _called(node: ast.AST) -> str | None:
    """The name of the function that is called here."""
    return node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else None


def _subject(tree: ast.AST) -> str | None:
    """The innermost function that the first assert calls, on the left."""
    for statement in _nodes(tree):
        if isinstance(statement, ast.Assert):
            node: ast.AST | None = statement.test
            while isinstance(node, (ast.Compare, ast.UnaryOp, ast.BinOp)):
                node = node.operand if isinstance(node, ast.UnaryOp) else node.left
            name = None
            while isinstance(node, ast.Call) and _called(node):
                name = _called(node)
                node = next((arg for arg in node.args if _called(arg)), None)
            return name
    return None
