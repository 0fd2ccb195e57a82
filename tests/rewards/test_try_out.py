import json
from pathlib import Path

import pytest

from shoal.cli.command import main
from shoal.errors import DataError
from shoal.rewards.try_out import read_rows

ROWS = [
    {"completion": "\\boxed{\\frac{2}{4}}", "ground_truth": "0.5", "note": "kept"},
    {"completion": "\\boxed{9^{9^{9^9}}}", "ground_truth": "5"},
    {"completion": "\\boxed{7}", "ground_truth": "5"},
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")
    return path


def scores(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_score_prints_each_row_with_its_score_or_why_it_is_missing(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(file), "--verifier", "math", "reward.timeout=2"]) == 0
    first, second, third = scores(capsys)
    assert first == {**ROWS[0], "score": 1.0}
    assert second == {**ROWS[1], "score": None, "reason": "no verdict within 2 s"}
    assert third == {**ROWS[2], "score": 0.0}


def test_score_takes_options_of_the_verifier_and_counts_words_where_rows_have_no_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"completion": "a b", "ground_truth": 4}\n{"completion": "a b", "num_tokens": 4, "ground_truth": 4}\n'
        '{"completion": "a b", "stop_reason": "error", "ground_truth": 4}\n'
    )
    assert main(["score", str(path), "--verifier", "max_length", "reward.options.max_length.scale=8"]) == 0
    rows = scores(capsys)
    assert [row["score"] for row in rows] == [0.75, 1.0, None]
    assert rows[2]["reason"] == "the completion has stop_reason error"


def test_score_says_which_verifier_there_is(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(file), "--verifier", "maht"]) == 2
    assert "the nearest is 'math'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("not json", "line 1: not JSON"),
        ('{"completion": "x"}', "line 1: a row needs completion and ground_truth; ground_truth is missing"),
        ("[1]", "line 1: a row needs"),
        ('{"completion": 5, "ground_truth": 5}', "line 1: completion is to be a string"),
        ('{"completion": "x", "ground_truth": 5, "stop_reason": "end"}', "line 1: stop_reason 'end' is none of"),
        ('{"completion": "x", "ground_truth": 5, "num_tokens": "3"}', "line 1: num_tokens is to be a whole number"),
    ],
)
def test_rows_that_cannot_be_scored_are_refused_by_line(tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=line):
        read_rows(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(tmp_path / "absent.jsonl")
