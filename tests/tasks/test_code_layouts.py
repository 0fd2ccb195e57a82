"""Data sets of programs: each form means what its makers mean, and what is not understood is refused with its line."""

from __future__ import annotations

import base64
import json
import pickle
import zlib

import pytest

from shoal.config import ShoalConfig
from shoal.config.mix import data_sources
from shoal.errors import DataError
from shoal.rewards.base import Submission
from shoal.rewards.verifiers.code import code
from shoal.tasks.dataset import LAYOUTS, _read
from shoal.tasks.layouts.code import read_code
from shoal.tasks.layouts.rlvr import read_rlvr

WIDE = {"seconds": 20.0, "cpu_seconds": 20.0, "total_seconds": 60.0}
TWO_SUM = (
    "def twoSum(nums, target):\n"
    "    return next([i, j] for j in range(9) for i in range(j) if nums[i] + nums[j] == target)"
)
METHOD = "class Solution:\n" + "\n".join(
    f"    {line}" for line in TWO_SUM.replace("(nums", "(self, nums: List[int]").splitlines()
)
CALLS = {"fn_name": "twoSum", "inputs": [[[2, 7, 11, 15], 9], [[3, 3], 6]], "outputs": [[0, 1], [0, 1]]}
CHECK = (
    "METADATA = {}\ndef check(candidate):\n    for n in range(9):\n        assert candidate(encode([n, 1])) == [n, 1]\n"
)
PROMPT = (
    "from typing import List\n\ndef encode(values: List[int]):\n    return [value + 1 for value in values]\n\n"
    'def decode(values: List[int]):\n    """The values that were encoded."""\n'
)
BODY = "    return [value - 1 for value in values]\n"


def packed(cases: object) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


FUNCTIONAL = {"input": "[2, 7, 11, 15]\n9", "output": "[0, 1]", "testtype": "functional"}
STDIN = {"input": "1 2\n", "output": "3", "testtype": "stdin"}
ADD_LINE = "print(sum(map(int, input().split())))"

# row, a right program, a wrong one
ROWS = {
    "calls of a function": ({"prompt": "?", "input_output": CALLS}, TWO_SUM, TWO_SUM.replace("==", "!=")),
    "calls of a method": ({"prompt": "?", "input_output": CALLS}, METHOD, METHOD.replace("[i, j]", "[j, i]")),
    "calls as JSON": ({"question": "?", "input_output": json.dumps(CALLS)}, METHOD, "def twoSum(a, b): return None"),
    "a name beside the tests": (
        {"prompt": "?", "tests": {"inputs": [[1]], "outputs": [2]}, "fn_name": "f"},
        "def f(x): return x + 1",
        "def f(x): return x",
    ),
    "results that are wrapped, as codewars' in APPS": (
        {"prompt": "?", "input_output": {"fn_name": "f", "inputs": [["ab"], ["c"]], "outputs": [["ba"], ["c"]]}},
        "def f(x): return x[::-1]",
        "def f(x): return x",
    ),
    "tuples, keys and floats of a call": (
        {"prompt": "?", "tests": {"fn_name": "f", "inputs": [[1]], "outputs": [[1, {"2": 0.3}, True, None]]}},
        "def f(x): return 1, {2: 0.1 + 0.2}, True, None",
        "def f(x): return 1, {2: 0.31}, True, None",
    ),
    "stdin and stdout": ({"prompt": "?", "input_output": {"inputs": ["1 2"], "outputs": ["3"]}}, ADD_LINE, "print(4)"),
    "lines of stdin": (
        {"prompt": "?", "input_output": {"inputs": [["1", "2"]], "outputs": [["1", "2"]], "fn_name": None}},
        "print(input())\nprint(input())",
        "print(input())",
    ),
    "a tolerance of the row's": (
        {"prompt": "?", "tests": [{"input": "", "output": "100", "tolerance": 0.01}]},
        "print(100.5)",
        "print(102)",
    ),
    "LiveCodeBench's calls": (
        {
            "question_content": "?",
            "starter_code": "class Solution:\n    def twoSum(self, nums: List[int], target: int):",
            "public_test_cases": json.dumps([FUNCTIONAL]),
            "private_test_cases": packed([{**FUNCTIONAL, "input": "[3, 3]\n6"}]),
            "metadata": json.dumps({"func_name": "twoSum"}),
        },
        METHOD,
        METHOD.replace("[i, j]", "[0, 1] if target == 9 else [j, i]"),
    ),
    "LiveCodeBench's stdin": (
        {"question_content": "?", "public_test_cases": json.dumps([STDIN]), "private_test_cases": "[]"},
        "print(reduce(lambda a, b: a + b, map(int, input().split())))",
        "print(int(sqrt(16)))",
    ),
    "verifiable coding problems": (
        {"prompt": "?", "verification_info": {"language": "python", "test_cases": [
            {"input": "1 2", "output": "3", "type": "stdin_stdout", "fn_name": None}]}},
        ADD_LINE,
        "print(4)",
    ),
    "HumanEval's body": ({"prompt": PROMPT, "test": CHECK, "entry_point": "decode"}, BODY, "    return values"),
    "HumanEval's function": (
        {"prompt": PROMPT, "test": CHECK, "entry_point": "decode"},
        "def decode(values: List[int]) -> Optional[list]:\n" + BODY,
        "def encode(values): return values\ndef decode(values): return values",
    ),
    "HumanEval's whole program": (
        {"prompt": PROMPT, "test": CHECK, "entry_point": "decode"},
        PROMPT + BODY,
        # The other half of the round trip is not the program's to give.
        "def encode(values): return [0, 1]\ndef decode(values): return values",
    ),
    "MBPP": ({"text": "Add.", "test_list": ["assert add(1, 2) == 3"]}, "def add(a, b): return a + b", "add = max"),
    "MBPP with what its tests need": (
        {"prompt": "Add.", "test_list": ["assert math.isclose(add(n, 2), 3)"], "test_imports": ["import math"],
         "test_setup_code": "n = 1"},
        "def add(a, b): return a + b",
        "def add(a, b): return a",
    ),
}  # fmt: skip


@pytest.mark.usefixtures("bubblewrap")
@pytest.mark.parametrize("name", ROWS)
def test_a_right_program_passes_the_tests_of_a_row_and_a_wrong_one_does_not(name):
    row, right, wrong = ROWS[name]
    truth = json.loads(json.dumps(read_code(row).ground_truth))
    assert code(Submission(f"```python\n{right}\n```", truth), **WIDE) == 1.0
    assert code(Submission(f"```python\n{wrong}\n```", truth), **WIDE) < 1.0


def test_the_starter_code_is_shown():
    assert "def twoSum(self" in read_code(ROWS["LiveCodeBench's calls"][0]).messages[0]["content"]


@pytest.mark.usefixtures("bubblewrap")
@pytest.mark.parametrize(
    ("dataset", "truth", "program"),
    [
        ("code", '["assert add(1, 2) == 3"]', "def add(a, b): return a + b"),
        (["code"], ['["assert add(1, 2) == 3"]'], "def add(a, b): return a + b"),
        ("code_stdio", '[{"input": "1 2", "output": "3"}]', ADD_LINE),
        ("code", json.dumps(CALLS), METHOD),
    ],
)
def test_open_instructs_rows_are_judged_as_they_mean(dataset, truth, program):
    row = {"messages": [{"role": "user", "content": "?"}], "ground_truth": truth, "dataset": dataset}
    example = read_rlvr(row)
    assert example.verifiers == ["code"]
    assert code(Submission(f"```python\n{program}\n```", example.ground_truth), **WIDE) == 1.0


REFUSED = [
    ({"tests": {"inputs": ["1"], "outputs": ["1"], "checker": "x"}}, "checker, which is not known"),
    ({"tests": [{"input": "1", "output": "1", "timeout": 3}]}, "timeout, which is not known"),
    ({"tests": [{"input": "1", "output": "1", "type": "interactive"}]}, "type 'interactive' is not known"),
    ({"tests": [FUNCTIONAL]}, "must have a name"),
    ({"tests": [{**FUNCTIONAL, "fn_name": "f", "input": "two words"}]}, "must be JSON"),
    ({"tests": [{**FUNCTIONAL, "fn_name": "f"}, STDIN]}, "must be of one kind"),
    ({"tests": {"fn_name": "f g", "inputs": [[1]], "outputs": [1]}}, "must have a name"),
    ({"tests": {"fn_name": "f", "inputs": ["1"], "outputs": [1]}}, "must be the list of its arguments"),
    ({"tests": {"inputs": [{"a": 1}], "outputs": ["1"]}}, "must be texts"),
    ({"tests": {"inputs": [], "outputs": []}}, "must be lists of one length"),
    ({"tests": [{"input": "", "output": "1", "tolerance": "small"}]}, "tolerance must be a number"),
    ({"test": "assert f(1) == 1", "entry_point": "f"}, "must define check"),
    ({"test": "def check(candidate): pass"}, "must have a name"),
    ({"verification_info": {"language": "javascript", "test_cases": [STDIN]}}, "for javascript"),
    ({"public_test_cases": "[]", "private_test_cases": "nonsense"}, "cannot be unpacked"),
    ({"public_test_cases": "[]", "private_test_cases": packed(0).replace("e", "f")}, "cannot be unpacked"),
    ({"tests": "[[1]]"}, "must be assert statements"),
]


@pytest.mark.parametrize(("row", "message"), REFUSED)
def test_what_is_not_understood_is_refused_with_its_line(tmp_path, row, message):
    good = json.dumps({"prompt": "?", "tests": ["assert f() == 1"]})
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{good}\n\n{json.dumps({'prompt': '?', **row})}\n")
    cfg = ShoalConfig()
    cfg.data.task, cfg.data.path = "code", str(path)
    with pytest.raises(DataError, match=rf"line 3, row 1: .*{message}"):
        _read(data_sources(cfg.data)[0], evaluation=False)


@pytest.mark.parametrize("task", ["rlvr", "messages"])
def test_a_row_that_names_the_verifier_has_its_tests_read_when_the_data_loads(task):
    row = {"messages": [{"role": "user", "content": "?"}], "ground_truth": '{"inputs": [1]}', "dataset": "code"}
    with pytest.raises(DataError, match="the tests must be"):
        LAYOUTS[task].read({**row, "verifiers": ["code"]})


def test_packed_tests_run_no_code():
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    text = base64.b64encode(zlib.compress(pickle.dumps(Evil()))).decode()
    with pytest.raises(DataError, match="is no text"):
        read_code({"prompt": "?", "public_test_cases": "[]", "private_test_cases": text})
