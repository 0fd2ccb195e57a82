"""Instruction following in the layout of google/IFEval: `prompt`, `instruction_id_list`, and `kwargs` for each."""

from __future__ import annotations

from shoal.errors import DataError
from shoal.tasks.layouts.base import Example, Layout, Row, conversation, parsed, without_none


def read_ifeval(row: Row) -> Example:
    """Raises DataError where the instructions and their arguments do not pair up."""
    names = parsed(row["instruction_id_list"])
    arguments = parsed(row["kwargs"])
    if not isinstance(names, list) or not names or not isinstance(arguments, list) or len(names) != len(arguments):
        raise DataError("instruction_id_list and kwargs must be lists of one length, and not empty")
    # Some sets keep each instruction's arguments as JSON.
    kwargs = [without_none(parsed(entry)) or {} for entry in arguments]
    return Example(conversation(row["prompt"]), {"instruction_id_list": names, "kwargs": kwargs})


LAYOUT = Layout(
    read=read_ifeval,
    columns=(("prompt",), ("instruction_id_list",), ("kwargs",)),
    verifiers={"ifeval": 1.0},
    hub=("google/IFEval", None),
)
