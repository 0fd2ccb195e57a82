"""The layout of Open-Instruct's RLVR sets (`rlvr_gsm8k_zs` and its kind): `messages`, `ground_truth`, and `dataset`,
which names the verifier. Where `dataset` is a list, `ground_truth` is one of the same length."""

from __future__ import annotations

from shoal.errors import DataError
from shoal.rewards.answers.code_tests import check_programs_tests
from shoal.tasks.layouts.base import Example, Layout, Row, conversation, names_in

# Their name of a verifier, where it is not ours.
NAMES = {"string_matcher": "string_match", "string_f1": "f1", "code_stdio": "code"}


def read_rlvr(row: Row) -> Example:
    """Raises DataError where verifiers and ground truths do not pair up."""
    names = [NAMES.get(name.lower(), name.lower() if ":" not in name else name) for name in names_in(row["dataset"])]
    if not names:
        raise DataError("dataset names no verifier")
    truth = row["ground_truth"]
    if isinstance(row["dataset"], list):
        if not isinstance(truth, list) or len(truth) != len(names):
            raise DataError(f"dataset names {len(names)} verifiers, so ground_truth must be a list of {len(names)}")
        truth = truth[0] if len(names) == 1 else dict(zip(names, truth, strict=True))
    check_programs_tests(names, truth)
    return Example(conversation(row["messages"]), truth, names)


LAYOUT = Layout(read=read_rlvr, columns=(("messages",), ("ground_truth",), ("dataset",)))
