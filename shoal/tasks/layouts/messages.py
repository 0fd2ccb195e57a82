"""The general layout: `messages` (or `prompt`), `ground_truth`, and the names of `verifiers`, one or several."""

from __future__ import annotations

from shoal.tasks.layouts.base import Example, Layout, Row, conversation, names_in, pick, without_none

ASKED = ("messages", "prompt")
JUDGES = ("verifiers", "verifier")


def read_messages(row: Row) -> Example:
    """Where the ground truth is a dict whose keys are the row's verifiers, each gets its own (the scorer's rule)."""
    verifiers = names_in(pick(row, JUDGES)) if any(row.get(name) is not None for name in JUDGES) else []
    return Example(conversation(pick(row, ASKED)), without_none(row["ground_truth"]), verifiers)


LAYOUT = Layout(read=read_messages, columns=(ASKED, ("ground_truth",)), optional=JUDGES)
