"""A line of samples as the pages know it, whoever wrote it: training, evaluation, `shoal score`."""

from __future__ import annotations

from typing import Any

from shoal.monitor.metrics import parts_are_right
from shoal.view.lines import number

MISSING, WRONG, MIXED, RIGHT, EQUAL = "missing", "wrong", "mixed", "right", "equal"
"""How a group came out, in the words of the metrics `groups/...`. `equal`: all rewards are equal, but neither is every
completion right nor every reward 0."""


def normal(row: dict[str, Any], place: int) -> dict[str, Any]:
    """A row of `shoal score` (completion, ground_truth, score, reason) in the words of samples; others as they are."""
    if "completion" not in row or "text" in row:
        return row
    score = number(row.get("score"))
    reason = row.get("reason")
    messages = row.get("messages") if isinstance(row.get("messages"), list) else None
    return {
        "group": f"row {place + 1}",
        "index": 0,
        "messages": messages,
        "prompt": row.get("prompt"),
        "text": row["completion"],
        "ground_truth": row.get("ground_truth"),
        "reward": score,
        "reward_parts": {"score": score},
        "stop_reason": row.get("stop_reason", "stop"),
        "length": row.get("num_tokens"),
        "info": {"missing": {"score": reason}} if reason else {},
    }


def is_right(parts: Any, reward: float | None) -> bool:
    """As training counts it, whatever stands in the row."""
    known = {str(name): number(part) for name, part in parts.items()} if isinstance(parts, dict) else {}
    return parts_are_right(known, reward)


def outcome(rewards: list[float], rights: int) -> str:
    """How a group came out, from its known rewards and the number of right completions among them."""
    if not rewards:
        return MISSING
    if rights == len(rewards):
        return RIGHT
    if all(reward <= 0 for reward in rewards):
        return WRONG
    return EQUAL if min(rewards) == max(rewards) else MIXED
