"""HumanEval and public verdicts, where their files are: every right program passes, and changed ones fail."""

from __future__ import annotations

import ast
import gzip
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shoal.rewards.base import Submission
from shoal.rewards.verifiers.code import code
from shoal.tasks.layouts.code import read_code

pytestmark = pytest.mark.usefixtures("bubblewrap")

DATA = Path(__file__).parents[3] / "shared" / "data"
HUMAN_EVAL, VERDICTS = DATA / "HumanEval.jsonl.gz", DATA / "verdicts.jsonl"
WIDE = {"seconds": 60.0, "cpu_seconds": 60.0, "total_seconds": 120.0}
ROUND_TRIPS = {"decode_cyclic": "encode_cyclic", "decode_shift": "encode_shift", "find_zero": "poly"}


@pytest.fixture(scope="module")
def problems():
    if not HUMAN_EVAL.exists():
        pytest.skip("the data are not here")
    with gzip.open(HUMAN_EVAL, "rt") as file:
        return [json.loads(line) for line in file]


def scores(problems, complete) -> dict[str, float]:
    def score(problem: dict) -> float:
        truth = read_code(problem).ground_truth
        return code(Submission(f"```python\n{complete(problem)}\n```", truth), **WIDE)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip([problem["task_id"] for problem in problems], pool.map(score, problems), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False])
def test_all_canonical_solutions_pass(problems, whole):
    got = scores(problems, lambda problem: (problem["prompt"] if whole else "") + problem["canonical_solution"])
    assert len(got) == 164
    assert [name for name, score in got.items() if score != 1.0] == []


@pytest.mark.slow
def test_solutions_whose_results_are_changed_fail(problems):
    def mutant(problem: dict) -> str:
        tree = ast.parse(problem["prompt"] + problem["canonical_solution"])
        wanted = problem["entry_point"]
        function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == wanted)
        function.name = "right"
        text = ast.unparse(tree)
        text = re.sub(rf"\b{wanted}\(", "right(", text)
        return (
            f"{text}\ndef {wanted}(*args):\n    value = right(*args)\n"
            "    if isinstance(value, bool) or value is None: return not value\n"
            "    if isinstance(value, (int, float)): return value + 1\n"
            "    return type(value)(value[:-1]) if len(value) else None"
        )

    got = scores(problems, mutant)
    assert [name for name, score in got.items() if score != 0.0] == []


def test_round_trips_of_the_programs_own_do_not_pass(problems):
    """The helper that the tests call stands in the prompt, so it is the judge's."""
    chosen = [problem for problem in problems if problem["entry_point"] in ROUND_TRIPS]
    assert len(chosen) == 3

    def forged(problem: dict) -> str:
        name, helper = problem["entry_point"], ROUND_TRIPS[problem["entry_point"]]
        return f"def {helper}(*args): return args[0] if len(args) == 1 else 0.0\ndef {name}(value): return value"

    assert set(scores(chosen, forged).values()) == {0.0}


@pytest.mark.skipif(not VERDICTS.exists(), reason="the data are not here")
def test_public_verdicts_on_programs_are_met():
    rows = [row for row in map(json.loads, VERDICTS.read_text().splitlines()) if row["verifier"] == "code"]
    assert rows
    got = {row["id"]: code(Submission(row["completion"], row["ground_truth"]), **WIDE) for row in rows}
    assert got == {row["id"]: row["expected"] for row in rows}
