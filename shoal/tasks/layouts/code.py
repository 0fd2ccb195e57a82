"""Programs judged by tests: what is asked, and tests in one of the forms of `shoal.rewards.answers.code_tests`.

Read as they are: MBPP (`text` or `prompt`, `test_list`, what the tests need), APPS and its kind (`question`,
`input_output`), HumanEval (`prompt`, `test`, `entry_point`), LiveCodeBench (`question_content`, `public_test_cases`,
`private_test_cases`), verifiable coding problems (`verification_info`), and `prompt` and `tests` of one's own.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import pickle
import zlib
from typing import Any

from shoal.errors import DataError
from shoal.rewards.answers.code_tests import ProgramTests, read_tests
from shoal.tasks.layouts.base import Example, Layout, Row, conversation, parsed, pick, without_none

ASKED = ("messages", "prompt", "question", "problem", "text", "question_content")
TESTS = ("tests", "test_list", "input_output", "test", "public_test_cases", "verification_info", "ground_truth")
MORE = (
    *("fn_name", "entry_point", "test_setup_code", "test_imports", "private_test_cases", "metadata", "starter_code"),
)
SHOWN_TESTS = 3
LONGEST_PRIVATE = 512 * 2**20


def read_code(row: Row) -> Example:
    """Raises DataError where the tests cannot be read."""
    given, messages = pick(row, TESTS), conversation(pick(row, ASKED))
    is_mbpp = row.get("test_list") is not None and given == row["test_list"]
    if is_mbpp and row.get("messages") is None:
        # MBPP's texts do not name the function that its tests call.
        shown = "\n".join(_with_setup(row, given, setup=False)[:SHOWN_TESTS])
        messages[-1] = {**messages[-1], "content": f"{messages[-1]['content']}\n\nIt must pass tests like:\n{shown}"}
    if row.get("starter_code") and row.get("messages") is None:
        text = f"{messages[-1]['content']}\n\nBegin with:\n```python\n{row['starter_code']}\n```"
        messages[-1] = {**messages[-1], "content": text}
    if is_mbpp:
        return Example(messages, tests_of(_with_setup(row, given)))
    if row.get("test") is not None and given == row["test"] and isinstance(given, str):
        prompt = row.get("prompt") if isinstance(row.get("prompt"), str) else ""
        return Example(messages, tests_of({"test": given, "entry_point": row.get("entry_point"), "prompt": prompt}))
    if row.get("public_test_cases") is not None and given == row["public_test_cases"]:
        return Example(messages, tests_of(_live_code_bench(row), _named(row)))
    return Example(messages, tests_of(given, _named(row)))


def tests_of(value: Any, name: str | None = None) -> Any:
    """The tests as the verifier `code` reads them, which are known to be right; `name` is that of the function.

    Raises:
        DataError: they are of no form that is known.
    """
    value = without_none(parsed(value))
    tests = read_tests(value, name)
    if tests.asserts:
        return list(tests.asserts)
    if tests.test:
        return value
    if tests.calls:
        given, wanted = ([json.loads(call[side]) for call in tests.calls] for side in (0, 1))
        return {"fn_name": tests.name, "inputs": given, "outputs": wanted}
    return _stdio(tests)


def _stdio(tests: ProgramTests) -> Any:
    if not tests.imports:
        return [
            {"input": test.input, "output": test.output}
            | ({} if test.tolerance is None else {"tolerance": test.tolerance})
            for test in tests.stdio
        ]
    inputs, outputs = [test.input for test in tests.stdio], [test.output for test in tests.stdio]
    return {"inputs": inputs, "outputs": outputs, "usual_imports": True}


def _named(row: Row) -> str | None:
    name = row.get("fn_name") or row.get("entry_point")
    if name is not None and not isinstance(name, str):
        raise DataError(f"fn_name must be the name of a function, not {str(name)[:80]!r}")
    return name


def _with_setup(row: Row, tests: Any, *, setup: bool = True) -> list[Any]:
    """MBPP's statements, each after what all of them need."""
    tests = parsed(tests)
    tests = [tests] if isinstance(tests, str) else tests
    needed = [*(row.get("test_imports") or []), row.get("test_setup_code") or ""] if setup else []
    before = "\n".join(line for line in needed if line)
    if not before or not isinstance(tests, list) or not all(isinstance(test, str) for test in tests):
        return tests
    return [f"{before}\n{test}" for test in tests]


def _live_code_bench(row: Row) -> list[Any]:
    cases = parsed(row["public_test_cases"])
    metadata = parsed(row.get("metadata") or {})
    name = metadata.get("func_name") if isinstance(metadata, dict) else None
    private = row.get("private_test_cases") or []
    more = parsed(private)
    if isinstance(more, str):
        more = _unpacked(more)
    if not isinstance(cases, list) or not isinstance(more, list):
        raise DataError("public_test_cases and private_test_cases must be lists of input, output and testtype")
    cases = [*cases, *more]
    if not all(isinstance(case, dict) for case in cases):
        raise DataError("public_test_cases and private_test_cases must be lists of input, output and testtype")
    return [{**case, "fn_name": name} if name else case for case in cases]


class _TextOnly(pickle.Unpickler):
    """Reads texts, and nothing that has a class."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} is no text")


def _unpacked(text: str) -> Any:
    """LiveCodeBench packs its private tests: JSON, pickled as a text, compressed, in base 64."""
    try:
        plain = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), LONGEST_PRIVATE)
        return json.loads(_TextOnly(io.BytesIO(plain)).load())
    except (binascii.Error, zlib.error, pickle.UnpicklingError, ValueError, TypeError, EOFError, IndexError) as error:
        raise DataError(f"private_test_cases cannot be unpacked: {error}") from error


LAYOUT = Layout(read=read_code, columns=(ASKED, TESTS), optional=MORE, verifiers={"code": 1.0})
