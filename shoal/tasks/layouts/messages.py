"""The general layout: `messages` (or `prompt`), `ground_truth` (or `solution`), and the names of `verifiers`."""

from __future__ import annotations

from shoal.rewards.answers.code_tests import check_programs_tests
from shoal.tasks.layouts.base import Example, Layout, Row, conversation, names_in, pick, without_none

ASKED = ("messages", "prompt")
TRUTH = ("ground_truth", "solution")
JUDGES = ("verifiers", "verifier")


def read_messages(row: Row) -> Example:
    """Where the ground truth is a dict whose keys are the row's verifiers, each gets its own (the scorer's rule)."""
    verifiers = names_in(pick(row, JUDGES)) if any(row.get(name) is not None for name in JUDGES) else []
    truth = without_none(pick(row, TRUTH))
    check_programs_tests(verifiers, truth)
    return Example(conversation(pick(row, ASKED)), truth, verifiers)


LAYOUT = Layout(read=read_messages, columns=(ASKED, TRUTH), optional=JUDGES)
