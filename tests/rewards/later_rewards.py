"""An async verifier that tests name by its import path."""

from __future__ import annotations

from shoal.rewards.base import Submission


async def length(submission: Submission) -> float:
    return float(len(submission.text))
