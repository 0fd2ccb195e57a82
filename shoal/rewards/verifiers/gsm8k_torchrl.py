"""TorchRL's reward for GSM8K, for comparing with its results; `gsm8k` is the one to train with."""

from __future__ import annotations

import re

from shoal.rewards.base import Submission, verifier
from shoal.rewards.verifiers.strings import CLOSING, OPENING

MARK = "#### "
WRONG = 0.1


@verifier("gsm8k_torchrl", bounded=True)
def gsm8k_torchrl(submission: Submission) -> float:
    """1 where the first `<answer>` is the ground truth, 0.1 for another answer that is not empty, 0 without one.

    Both lose commas, dollar and percent signs, a final stop and trailing decimal zeros, and must then be equal letter
    for letter. Think tags earn nothing.
    """
    _, _, after = submission.text.partition(OPENING)
    answer, closed, _ = after.partition(CLOSING)
    answer = answer.strip()
    if not closed or not answer:
        return 0.0
    truth = str(submission.ground_truth).rpartition(MARK)[2]
    return 1.0 if _plain(answer) == _plain(truth) else WRONG


def _plain(answer: str) -> str:
    answer = re.sub("[,$%]", "", answer.strip()).rstrip(".")
    return answer.rstrip("0").rstrip(".") if "." in answer else answer
