"""What a run in a storm is rewarded for."""

from hashlib import sha256

from shoal.rewards.base import Submission


def in_a_worker(submission: Submission) -> float:
    """A verdict on about every other completion of a random model, given in a worker process."""
    return float(sha256(submission.text.encode()).digest()[0] % 2)
