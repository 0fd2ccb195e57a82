"""Programs judged by tests: a `prompt`, and `tests` that are assert statements or pairs of input and output.

The tests may be a list of statements (MBPP's `test_list`), a list of objects with `input` and `output`, an object with
lists of `inputs` and `outputs` (APPS' `input_output`), or any of these as JSON.
"""

from __future__ import annotations

from typing import Any

from shoal.errors import DataError
from shoal.tasks.layouts.base import Example, Layout, Row, conversation, parsed, pick

ASKED = ("messages", "prompt", "question", "problem", "text")
TESTS = ("tests", "test_list", "input_output", "ground_truth")
SHOWN_TESTS = 3


def read_code(row: Row) -> Example:
    """Raises DataError where the tests cannot be read."""
    tests = tests_of(pick(row, TESTS))
    messages = conversation(pick(row, ASKED))
    if row.get("test_list") is not None and row.get("messages") is None:
        # MBPP's texts do not name the function that its tests call.
        shown = "\n".join(tests[:SHOWN_TESTS])
        messages[-1] = {**messages[-1], "content": f"{messages[-1]['content']}\n\nIt must pass tests like:\n{shown}"}
    return Example(messages, tests)


def tests_of(value: Any) -> list[Any]:
    """The tests as the verifier `code` reads them: statements, or objects with `input` and `output`.

    Raises:
        DataError: they are neither, or there are none.
    """
    value = parsed(value)
    if isinstance(value, dict) and {"inputs", "outputs"} <= set(value):
        inputs, outputs = value["inputs"], value["outputs"]
        if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
            raise DataError("the tests' inputs and outputs must be lists of one length")
        value = [{"input": given, "output": wanted} for given, wanted in zip(inputs, outputs, strict=True)]
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list) and value and all(isinstance(test, str) and test.strip() for test in value):
        return value
    if isinstance(value, list) and value and all(isinstance(test, dict) and "output" in test for test in value):
        return [{"input": _text(test.get("input")), "output": _text(test["output"])} for test in value]
    raise DataError(f"the tests must be assert statements, or objects with input and output, not {str(value)[:80]!r}")


def _text(value: Any) -> str:
    """Sets give a program's input as one text or as its lines."""
    if isinstance(value, list):
        return "\n".join(map(str, value))
    return "" if value is None else str(value)


LAYOUT = Layout(read=read_code, columns=(ASKED, TESTS), verifiers={"code": 1.0})
