"""The verifier of JSON against a schema."""

from __future__ import annotations

import json
import re
from typing import Any

from shoal.rewards.answers.thinking import answering_part
from shoal.rewards.base import Submission, verifier
from shoal.rewards.verifiers.strings import tagged_answer

FENCED = re.compile(r"```(?:json|JSON)?\s*\n(.*?)```", re.DOTALL)


def check_schema(ground_truth: Any) -> None:
    """Raises ValueError where a ground truth is no JSON Schema."""
    from jsonschema.exceptions import SchemaError  # noqa: PLC0415 - an optional package
    from jsonschema.validators import validator_for  # noqa: PLC0415

    schema = json.loads(ground_truth) if isinstance(ground_truth, str) else ground_truth
    if not isinstance(schema, dict | bool):
        raise ValueError(f"a JSON Schema is an object, not {str(ground_truth)[:80]!r}")
    try:
        validator_for(schema).check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"not a JSON Schema: {error.message}") from error


@verifier("json_schema", needs={"jsonschema": "json"}, check=check_schema)
def json_schema(submission: Submission) -> float:
    """1 where the answer is JSON that the ground truth, a JSON Schema, accepts (formats are checked), and 0 otherwise.

    The answer is the last fenced block, else the last `<answer>`, else all that follows the thinking. A schema that is
    itself wrong, or refers to another document, makes the score missing.
    """
    from jsonschema.validators import validator_for  # noqa: PLC0415 - an optional package
    from referencing import Registry  # noqa: PLC0415 - comes with jsonschema

    schema = submission.ground_truth
    schema = json.loads(schema) if isinstance(schema, str) else schema
    kind = validator_for(schema)
    kind.check_schema(schema)
    checker = kind(schema, registry=Registry(), format_checker=kind.FORMAT_CHECKER)
    try:
        document = json.loads(_answer(submission.text), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return 0.0
    return float(checker.is_valid(document))


def _answer(text: str) -> str:
    text = answering_part(text)
    fenced = FENCED.findall(text)
    if fenced:
        return str(fenced[-1])
    tagged = tagged_answer(text)
    return text if tagged is None else tagged


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
