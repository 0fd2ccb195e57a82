"""Verifiers for worker processes, which import this module."""

from __future__ import annotations

import os
import time

import numpy as np

from shoal.rewards.base import Submission


def slow(submission: Submission) -> float:
    """Takes a second."""
    time.sleep(1.0)
    return 1.0


def process_id(submission: Submission) -> float:
    """Slow enough that every worker gets work."""
    time.sleep(0.1)
    return float(os.getpid())


def hungry(submission: Submission) -> float:
    """Asks for 2 GiB, of which nothing is touched."""
    return float(np.empty(2**31, dtype=np.uint8).size > 0)


def picky(submission: Submission) -> float:
    """Raises on one text."""
    if submission.text == "bad":
        raise ValueError("no verdict")
    return 1.0
