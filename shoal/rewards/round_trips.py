"""Tests of a program whose expected value the program itself computes, such as `assert decode(encode(x)) == x`: a
program whose functions return what they are given passes them."""

from __future__ import annotations

import ast
import builtins
import sys
from typing import Any

from shoal.errors import DataError
from shoal.rewards.answers.code_tests import read_tests


def round_trips(truth: Any) -> list[str]:
    """The asserts of this kind among the tests of a ground truth, as texts; none where it has no tests."""
    try:
        asserts = read_tests(truth).run("")[1].asserts
    except DataError:
        return []
    found = []
    for text in asserts:
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError):
            continue
        ours = {*dir(builtins), *sys.stdlib_module_names, *_defined(tree)} - {"candidate"}
        found += [
            ast.unparse(node)
            for node in ast.walk(tree)
            if isinstance(node, ast.Assert) and _asks_itself(node.test, ours)
        ]
    return found


def _defined(tree: ast.AST) -> set[str]:
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.arg):
            names.add(node.arg)
    return names


def _asks_itself(test: ast.expr, ours: set[str]) -> bool:
    """Whether both sides of a comparison call the program, or one gives what it returned to another of its functions.
    A name that begins with a capital letter is a class, whose instances are no expected values."""
    for node in ast.walk(test):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if sum(bool(_calls(side, ours)) for side in sides) > 1:
                return True
    return any(_calls(part, ours) for call in _calls(test, ours) for part in [*call.args, *call.keywords])


def _calls(node: ast.AST, ours: set[str]) -> list[ast.Call]:
    return [
        call
        for call in ast.walk(node)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id not in ours
        and not call.func.id[:1].isupper()
    ]
