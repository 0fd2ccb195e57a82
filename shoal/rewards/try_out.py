"""Trying a reward on rows of one's own: `shoal score`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from shoal.config.nodes.data import RewardConfig
from shoal.errors import DataError
from shoal.rewards.report import ScoreReport
from shoal.rewards.scorer import MISSING, Scorer
from shoal.types import Completion, Group, Prompt, Segment, StopReason

COLUMNS = ("completion", "ground_truth")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file.

    Raises:
        DataError: the file cannot be read, or a line is no row of `completion` and `ground_truth`.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return [_row(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def score_rows(
    rows: Iterable[dict[str, Any]], verifier: str, reward: RewardConfig
) -> tuple[list[dict[str, Any]], ScoreReport]:
    """Each row with its `score` (None where it is missing, and `reason`), and what the scorer reports.

    Beside the two columns a row may have `messages`, `stop_reason` and `num_tokens` (else words are counted).

    Raises:
        ConfigError: there is no such verifier, or it has no such options.
    """
    rows = list(rows)
    groups = [_group(index, row) for index, row in enumerate(rows)]
    scorer = Scorer(replace(reward, verifiers={verifier: 1.0}), {})
    try:
        report = scorer.score(groups)
    finally:
        scorer.close()
    return list(_scored(rows, groups, verifier)), report


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {number}: not JSON ({error})") from error
    absent = [name for name in COLUMNS if not isinstance(row, dict) or name not in row]
    if absent:
        raise DataError(
            f"{path}, line {number}: a row needs {' and '.join(COLUMNS)}; {' and '.join(absent)} is missing"
        )
    if not isinstance(row["completion"], str):
        raise DataError(f"{path}, line {number}: completion is to be a string")
    stop, tokens = row.get("stop_reason", StopReason.STOP), row.get("num_tokens", 0)
    if stop not in list(StopReason):
        raise DataError(f"{path}, line {number}: stop_reason {stop!r} is none of {', '.join(StopReason)}")
    if not isinstance(tokens, int) or tokens < 0:
        raise DataError(f"{path}, line {number}: num_tokens is to be a whole number, not {tokens!r}")
    return row


def _group(index: int, row: dict[str, Any]) -> Group:
    count = row.get("num_tokens", len(row["completion"].split()))
    segment = Segment([], [0] * count, [0.0] * count, [True] * count)
    stop = StopReason(row.get("stop_reason", StopReason.STOP))
    prompt = Prompt(id=str(index), token_ids=[], ground_truth=row["ground_truth"], messages=row.get("messages", []))
    return Group(str(index), [Completion([segment], stop, text=row["completion"])], prompt)


def _scored(rows: list[dict[str, Any]], groups: list[Group], verifier: str) -> Iterator[dict[str, Any]]:
    for row, group in zip(rows, groups, strict=True):
        completion = group.completions[0]
        score = completion.reward_parts.get(verifier)
        if score is not None:
            yield {**row, "score": score}
        else:
            reason = completion.info.get(MISSING, {}).get(
                verifier, f"the completion has stop_reason {completion.stop_reason}"
            )
            yield {**row, "score": None, "reason": reason}
