"""The tests of a program, in the forms in which data sets give them.

- statements: `["assert add(1, 2) == 3"]` (MBPP, Open-Instruct);
- input and output: `[{"input": "1 2", "output": "3"}]`, or `{"inputs": [...], "outputs": [...]}` (APPS);
- calls: the latter with `fn_name`, the name of a function or of a method of `class Solution`, or LiveCodeBench's cases
  with `"testtype": "functional"`, whose input has one JSON value a line for each argument;
- a check function: `{"prompt": ..., "test": "def check(candidate): ...", "entry_point": "add"}` (HumanEval).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import indent
from typing import Any

from shoal.errors import DataError
from shoal.rewards.answers.usual_imports import with_usual_imports
from shoal.rewards.sandbox.outcome import StdioTest, Tests

CASE_KEYS = {"input", "output", "testtype", "type", "fn_name", "metadata", "tolerance"}
STDIO_KINDS = (None, "stdin", "stdin_stdout", "stdio")
CALL_KINDS = ("functional", "function_call", "call")
SET_KEYS = {"inputs", "outputs", "fn_name", "tolerance", "usual_imports"}
CHECK_KEYS = {"prompt", "test", "entry_point"}
MADE = "from calls import check_call\ncheck_call({name}, {given!r}, {wanted!r}, {wrapped})"


@dataclass(frozen=True)
class ProgramTests:
    """One of statements, `stdio`, `calls` (arguments and result, as JSON) of `name`, and a check function `test` of
    `name`, which completes `prompt`. `imports`: the program may leave out the usual imports."""

    asserts: tuple[str, ...] = ()
    stdio: tuple[StdioTest, ...] = ()
    calls: tuple[tuple[str, str], ...] = ()
    name: str = ""
    prompt: str = ""
    test: str = ""
    imports: bool = False
    wrapped: bool = False  # every result is a list of one value, which may also be given without the list

    def __len__(self) -> int:
        return len(self.asserts) + len(self.stdio) + len(self.calls) + bool(self.test)

    def run(self, program: str) -> tuple[str, Tests]:
        """The program with what the layout gives it, and its tests."""
        tests = Tests(self.asserts, self.stdio)
        if self.calls:
            method = re.search(r"^class Solution\b", program, re.MULTILINE) and not _defines(program, self.name)
            name = f"Solution().{self.name}" if method else self.name
            tests = Tests(tuple(MADE.format(name=name, given=a, wanted=b, wrapped=self.wrapped) for a, b in self.calls))
        if self.test:
            # What stands in the prompt beside the function is the judge's own too: the program does not judge itself.
            stub = re.search(rf"^(async )?def {self.name}\b", self.prompt, re.MULTILINE)
            helpers = self.prompt[: stub.start()] if stub else self.prompt
            tests = Tests((f"{helpers}\n{self.test}\ncheck({self.name})\n",))
            if _defines(program, self.name):
                program = f"{helpers}\n{program}" if "from __future__" not in program else program
            else:
                first = next((line for line in program.splitlines() if line.strip()), "")
                body = program if first.startswith((" ", "\t")) else indent(program, "    ")
                program = f"{self.prompt}\n{body}" if stub else program
        return (with_usual_imports(program) if self.imports else program), tests


def _defines(program: str, name: str) -> bool:
    pattern = rf"^((async )?def {name}\b|{name}\s*=|from .* import .*\b{name}\b|class {name}\b)"
    return re.search(pattern, program, re.MULTILINE) is not None


def read_tests(truth: Any, name: str | None = None) -> ProgramTests:
    """Tests from a ground truth, or from its JSON. `name` is that of the function, where the row gives it elsewhere.

    Raises:
        DataError: there are none in it, or something in it is not understood.
    """
    if isinstance(truth, str):
        try:
            truth = json.loads(truth)
        except ValueError:
            truth = [truth] if truth.strip() else []  # statements as they stand
        if isinstance(truth, str):
            truth = [truth]
    if isinstance(truth, dict) and "test_cases" in truth:
        _refuse_others(truth, {"test_cases", "language"})
        if truth.get("language") not in (None, "python", "python3"):
            raise DataError(f"the tests are for {truth['language']}, and programs are run as Python")
        truth = truth["test_cases"]
    if isinstance(truth, dict) and "test" in truth:
        return _check_function(truth)
    if isinstance(truth, dict) and {"inputs", "outputs"} <= set(truth):
        return _cases(*_pairs(truth), name=truth.get("fn_name") or name, imports=bool(truth.get("usual_imports")))
    if isinstance(truth, list) and truth and all(isinstance(test, str) and test.strip() for test in truth):
        return ProgramTests(asserts=tuple(truth))
    if isinstance(truth, list) and truth and all(isinstance(test, dict) and "output" in test for test in truth):
        return _listed(truth, name)
    raise DataError(
        "the tests must be assert statements, objects with input and output, or inputs and outputs with fn_name, "
        f"not {str(truth)[:80]!r}"
    )


def check_programs_tests(verifiers: Sequence[str], truth: Any) -> None:
    """Reads the tests of a row that names the verifier `code`, so that they are found wrong when the data loads.

    Raises:
        DataError: as `read_tests`.
    """
    if "code" in verifiers:
        own = isinstance(truth, dict) and set(truth) == set(verifiers)
        read_tests(truth["code"] if own else truth)


def _check_function(truth: dict[str, Any]) -> ProgramTests:
    _refuse_others(truth, CHECK_KEYS)
    test, name, prompt = truth["test"], truth.get("entry_point"), truth.get("prompt") or ""
    if not isinstance(test, str) or not re.search(r"^def check\(", test, re.MULTILINE) or not isinstance(prompt, str):
        raise DataError(f"test must define check(candidate), as HumanEval's does, not {str(test)[:80]!r}")
    return ProgramTests(test=test, name=_function(name), prompt=prompt, imports=True)


def _function(name: Any) -> str:
    if not isinstance(name, str) or not name.isidentifier():
        raise DataError(f"the function that is tested must have a name (fn_name or entry_point), not {name!r}")
    return name


def _pairs(truth: dict[str, Any]) -> tuple[list[Any], list[Any], Any]:
    _refuse_others(truth, SET_KEYS)
    inputs, outputs = truth["inputs"], truth["outputs"]
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs) or not inputs:
        raise DataError("the tests' inputs and outputs must be lists of one length")
    return inputs, outputs, truth.get("tolerance")


def _cases(inputs: list[Any], outputs: list[Any], tolerance: Any, *, name: Any, imports: bool) -> ProgramTests:
    if name is None:
        stdio = [_stdio(given, wanted, tolerance) for given, wanted in zip(inputs, outputs, strict=True)]
        return ProgramTests(stdio=tuple(stdio), imports=imports)
    if tolerance is not None:
        raise DataError("tolerance is of stdin and stdout; results of calls that are floats are compared within 1e-6")
    for given in inputs:
        if not isinstance(given, list):
            raise DataError(f"the input of a call of {name} must be the list of its arguments, not {str(given)[:80]!r}")
    calls = tuple((_json(given), _json(wanted)) for given, wanted in zip(inputs, outputs, strict=True))
    wrapped = all(isinstance(wanted, list) and len(wanted) == 1 for wanted in outputs)
    return ProgramTests(calls=calls, name=_function(name), imports=True, wrapped=wrapped)


def _listed(cases: list[dict[str, Any]], name: str | None) -> ProgramTests:
    kinds, names = set(), {name} - {None}
    for case in cases:
        _refuse_others(case, CASE_KEYS)
        metadata = case.get("metadata") or {}
        given = case.get("fn_name") or (metadata.get("func_name") if isinstance(metadata, dict) else None)
        names |= {given} - {None}
        kind = case.get("testtype") or case.get("type")
        if kind not in STDIO_KINDS and kind not in CALL_KINDS:
            known = ", ".join(map(str, STDIO_KINDS[1:] + CALL_KINDS))
            raise DataError(f"a test of type {kind!r} is not known; {known} are")
        kinds.add(kind in CALL_KINDS or (kind is None and given is not None))
    if len(kinds) > 1 or len(names) > 1:
        raise DataError("the tests must be of one kind, calls of one function or inputs and outputs")
    typed = any(case.get("testtype") or case.get("type") for case in cases)
    if kinds == {False}:
        stdio = tuple(_stdio(case.get("input"), case["output"], case.get("tolerance")) for case in cases)
        return ProgramTests(stdio=stdio, imports=typed)
    inputs = [_arguments(case.get("input")) for case in cases]
    outputs = [_parsed(case["output"]) if isinstance(case["output"], str) else case["output"] for case in cases]
    return _cases(inputs, outputs, None, name=next(iter(names), ""), imports=True)


def _arguments(given: Any) -> Any:
    """LiveCodeBench: a JSON value a line for each argument."""
    return [_parsed(line) for line in given.splitlines() if line.strip()] if isinstance(given, str) else given


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"a value of a call must be JSON, not {text[:80]!r}") from error


def _json(value: Any) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"a value of a call must be JSON: {error}") from error


def _stdio(given: Any, wanted: Any, tolerance: Any) -> StdioTest:
    number = isinstance(tolerance, int | float) and not isinstance(tolerance, bool)
    if tolerance is not None and not (number and tolerance >= 0):
        raise DataError(f"tolerance must be a number from 0, not {tolerance!r}")
    return StdioTest("" if given is None else _text(given), _text(wanted), tolerance)


def _text(value: Any) -> str:
    """Sets give a program's input as one text, as its lines or as a number."""
    if isinstance(value, list) and all(isinstance(line, str | int | float) for line in value):
        return "\n".join(map(str, value))
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise DataError(f"input and output must be texts or lists of lines, not {str(value)[:80]!r}")
    return str(value)


def _refuse_others(given: dict[str, Any], known: set[str]) -> None:
    if others := sorted(set(given) - known):
        names = ", ".join(map(str, others))
        raise DataError(f"the tests have {names}, which is not known beside {', '.join(sorted(known))}")
