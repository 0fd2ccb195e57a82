"""Verdicts by kind, the public reports' among them, and GSM8K's labels of four models' solutions."""

import json
from pathlib import Path
from typing import Any

import pytest
from verdict_rows import VERDICTS

from shoal.config.nodes.data import RewardConfig
from shoal.errors import DataError
from shoal.rewards.base import REGISTRY, Submission
from shoal.rewards.lookup import find_verifier
from shoal.rewards.scorer import Scorer
from shoal.rewards.verifiers.gsm8k import gsm8k
from shoal.rewards.verifiers.ifeval import ifeval, ifeval_loose, ifeval_torchrl
from shoal.rewards.verifiers.math import quick_math
from shoal.rewards.verifiers.regex import regex
from shoal.tasks.dataset import DataSplit, _check_ground_truth
from shoal.types import Completion, Group, Prompt, Segment, StopReason

DATA = Path(__file__).parents[3] / "shared" / "data"
IN_SANDBOX = "code"  # its rows are in test_code_verifier.py's table, where a sandbox is


def wrong(rows: list[tuple[str, str, Any, float | None]]) -> list[Any]:
    """The rows whose score is another, scored in one call."""
    groups = [
        Group(
            str(index),
            [Completion([Segment([], [], [], [])], StopReason.STOP, text=text)],
            Prompt(str(index), [], ground_truth=truth, verifiers=[name]),
        )
        for index, (name, text, truth, _) in enumerate(rows)
    ]
    with Scorer(RewardConfig(workers=1, timeout=60), {}) as scorer:
        scorer.score(groups)
    given = [group.completions[0].reward for group in groups]
    return [(*row, score) for row, score in zip(rows, given, strict=True) if score != row[3]]


def test_answers_in_other_writings_are_right_and_near_misses_wrong() -> None:
    assert len(VERDICTS) >= 150 and not wrong(VERDICTS)


@pytest.mark.skipif(not (DATA / "verdicts.jsonl").is_file(), reason="the public verdicts are not here")
def test_the_verdicts_of_public_reports_hold() -> None:
    rows = [json.loads(line) for line in (DATA / "verdicts.jsonl").read_text().splitlines()]
    given = [(row["verifier"], row["completion"], row["ground_truth"], row["expected"]) for row in rows]
    assert not wrong([row for row in given if row[0] != IN_SANDBOX])


LABELS = DATA / "gsm8k_example_model_solutions.jsonl"


@pytest.mark.skipif(not LABELS.is_file(), reason="GSM8K's example solutions are not here")
def test_gsm8k_and_math_agree_with_the_labels_of_four_models_solutions() -> None:
    differ = []
    for line in LABELS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        truth = row["ground_truth"].rpartition("A:")[2].strip()
        for solution in (value for value in row.values() if isinstance(value, dict)):
            submission = Submission(solution["solution"], truth)
            right, quick = solution["is_correct"], quick_math(submission)
            if gsm8k(submission) != right or quick not in (right, None):
                differ.append((truth, solution))
    assert not differ


@pytest.mark.parametrize(
    ("name", "truth", "why"),
    [
        ("ifeval", {"instruction_id_list": ["keywords:must_include"], "kwargs": [{}]}, "no IFEval instruction"),
        ("ifeval", {"instruction_id_list": ["count:counting_composition"], "kwargs": [{}]}, "no IFEval instruction"),
        ("ifeval", {"instruction_id_list": ["length_constraints:number_words"], "kwargs": [{}]}, "cannot be checked"),
        ("ifeval", {"instruction_id_list": ["startend:end_checker"], "kwargs": [{"end_phrase": 5}]}, "cannot be check"),
        ("ifeval", {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}, {}]}, "1 instructions and 2 sets"),
        ("ifeval", {"instructions": ["punctuation:no_comma"]}, "names no instructions"),
        ("ifeval", "not a ground truth", "not a ground truth of IFEval"),
        ("ifeval_loose", 5, "names no instructions"),
        ("json_schema", {"type": "no such type"}, "not a JSON Schema"),
        ("json_schema", "not a schema", "Expecting value"),
        ("json_schema", [1], "a JSON Schema is an object"),
        ("regex", "(", "is no regular expression"),
        ("regex", None, "no ground truth"),
    ],
)
def test_a_ground_truth_of_a_wrong_form_is_refused_when_the_data_loads(name: str, truth: Any, why: str) -> None:
    prompt = Prompt("file/train/7", [], ground_truth=truth, verifiers=[name])
    with pytest.raises(DataError, match=f"file/train/7: the ground truth of {name}: .*{why}"):
        _check_ground_truth(DataSplit(None, False, [], []), prompt, ())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["ifeval", "json_schema", "regex"])
def test_a_ground_truth_of_the_right_form_is_taken(name: str) -> None:
    find_verifier(name)
    check = REGISTRY[name].check
    truths = {
        "ifeval": {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
        "json_schema": {"type": "object"},
        "regex": ["a+", "b"],
    }
    assert check is not None and check(truths[name]) is None


LONG = 2_000_000


@pytest.mark.parametrize("piece", ["a", ".", "*", "[", "a. ", "<answer>", "<<", '"', "A-", "-", "1 "])
def test_a_very_long_response_is_wrong_and_not_missing(piece: str) -> None:
    text = piece * (LONG // len(piece)) + "x"
    rules = {
        "instruction_id_list": ["length_constraints:number_sentences", "detectable_format:title"],
        "kwargs": [{"num_sentences": 2, "relation": "at least"}, {}],
    }
    assert ifeval(Submission(text, rules)) == ifeval_loose(Submission(text, rules)) == 0
    assert ifeval_torchrl(Submission(f"<think>{text}", rules)) == 0
    assert regex(Submission(text, "x$")) == 0


@pytest.mark.parametrize("piece", ["a", ".", "*", "[", "a. ", "<<", '"', "A-", "-", "1 "])
def test_instructions_are_checked_in_linear_time(piece: str) -> None:
    text = piece * (199_000 // len(piece)) + "x"
    rules = {
        "instruction_id_list": ["length_constraints:number_sentences", "detectable_format:number_highlighted_sections"],
        "kwargs": [{"num_sentences": 2, "relation": "at least"}, {"num_highlights": 1}],
    }
    assert ifeval(Submission(text, rules)) is not None
