"""The contract of verifiers that ask a judge: they see all completions of a step at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

from shoal.config.nodes.data import RewardConfig
from shoal.rewards.base import Submission
from shoal.rewards.judging.client import AheadClient, JudgeClient
from shoal.rewards.verdict import Verdict


@dataclass(frozen=True)
class Asked:
    """One completion to be judged. `group` numbers its group within the call, `prompt_id` is stable across runs."""

    group: int
    prompt_id: str
    submission: Submission


class JudgedVerifier(ABC):
    """Judges whole steps. It is made once for a run, and what it learns is saved with the run."""

    def __init__(self, reward: RewardConfig, client: JudgeClient) -> None:
        self.reward = reward
        self.client: JudgeClient | AheadClient = client

    @abstractmethod
    def verdicts(self, asked: Sequence[Asked], step: int | None) -> list[Verdict]:
        """One verdict for each of `asked`, in order. `step` is None outside training: then nothing is learnt."""

    def ahead(self, asked: Sequence[Asked], step: int | None) -> None:
        """Asks the judge what `verdicts` will ask about these completions, so that its replies are there by then.

        Called in a thread of its own, with all completions of one group. Learns nothing.

        Raises:
            BudgetError: as `verdicts` does.
        """
        self.copy_for_asking().verdicts(asked, step)

    def copy_for_asking(self) -> JudgedVerifier:
        """One that asks the same and keeps nothing."""
        other = copy(self)
        other.client = AheadClient(self.client)
        return other

    def metrics(self) -> dict[str, float]:
        """What the last call found, by metric name."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What was learnt, as plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        """Goes on after `step` with what was learnt until then."""

    def snapshot(self) -> Any:
        """What was learnt, cheaply, to be given to `restore` in the same process."""
        return None

    def restore(self, snapshot: Any) -> None:
        """Forgets what was learnt since."""


JUDGED: dict[str, type[JudgedVerifier]] = {}
"""Verifiers that ask a judge, by name."""


def judged_verifier(name: str) -> Callable[[type[JudgedVerifier]], type[JudgedVerifier]]:
    """Class decorator that registers a verifier which asks a judge."""

    def register(kind: type[JudgedVerifier]) -> type[JudgedVerifier]:
        JUDGED[name] = kind
        return kind

    return register


def question_of(submission: Submission, truth: Any = None) -> str:
    """What the completion answers: the `query` of `truth` where it is a dict with one, else the last user message.

    `messages` without a user's turn give their last content, and none an empty question.
    """
    if isinstance(truth, dict) and isinstance(truth.get("query"), str):
        return str(truth["query"])
    turns = [turn for turn in submission.messages if turn.get("role") == "user"] or submission.messages
    return str(turns[-1]["content"]) if turns else ""
