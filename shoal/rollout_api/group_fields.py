"""What the fields of a group may hold beyond their types, checked where a group comes in and before it is trained on.

A server that is not Shoal's checks none of it, and groups may wait in a store since before there was a check. So the
trainer asks the same questions as the server.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Annotated, Any, get_type_hints

from msgspec import Meta, Struct, ValidationError, convert

from shoal.rollout_api.protocol import LARGEST, Count, Number, ScoredGroup
from shoal.types import StopReason

EXTRAS = "shoal"
"""Key in `generation_params` of what Shoal's environments add."""

COLDEST, HOTTEST = 1e-3, 1e3
DEEPEST = 64
SMALLEST_INT, LARGEST_INT = -(2**63), 2**63 - 1

Share = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]


class InvalidBodyError(Exception):
    """A body that is not taken. `where` leads to the place: keys and indices from the top."""

    def __init__(self, message: str, where: Sequence[str | int] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.where = list(where)

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors that cross from a worker process are rebuilt from both."""
        return InvalidBodyError, (self.message, self.where)


class Extras(Struct, kw_only=True):
    """`generation_params["shoal"]`. `completions` has the completion's number for each sequence; the other lists have
    one entry for each completion."""

    group: str | None = None
    epoch: Count | None = None
    source: str | None = None
    ground_truth: Any = None
    messages: list[dict[str, Any]] | None = None
    completions: list[Count] | None = None
    stop_reasons: list[str | None] | None = None
    versions: list[list[tuple[Count, Count]] | None] | None = None
    reward_parts: list[dict[str, Share | None] | None] | None = None
    penalties: list[dict[str, Share] | None] | None = None
    texts: list[str | None] | None = None


STOP_REASONS = tuple(reason.value for reason in StopReason)
FREE = ("messages", "generation_params", "overrides", "group_overrides", "images")
"""Fields whose types leave most open."""

TRAINED_ON: dict[str, Any] = {
    **{name: get_type_hints(ScoredGroup, include_extras=True)[name] for name in ("tokens", "masks", *FREE)},
    # A server that is not Shoal's may hand out null and NaN: a missing reward, and log-probs for the learner to find.
    "scores": list[Number | bool | None],
    **dict.fromkeys(("advantages", "ref_logprobs", "inference_logprobs"), list[list[Number] | None] | None),
}


def check_group(data: Mapping[str, Any]) -> None:
    """Everything that can be said of a group without the model that is to be trained on it.

    Raises:
        InvalidBodyError: the reason and the place.
    """
    for name, kind in TRAINED_ON.items():
        value = data.get(name)
        try:
            convert(value, kind)
        except ValidationError as error:
            raise from_msgspec(error, [name]) from error
        if value is not None:
            check_field(name, value, len(data["tokens"]))


def check_field(name: str, value: Any, sequences: int) -> None:
    """What a field's type does not say. `sequences` counts those of the group.

    Raises:
        InvalidBodyError: as above.
    """
    if name in FREE:
        _check_plain(value, [name])
    if name == "generation_params":
        _check_temperature(value, [name])
        _check_extras(value.get(EXTRAS), [name, EXTRAS], sequences)
    elif name == "group_overrides":
        _check_temperature(value, [name])
    elif name == "overrides":
        for index, one in enumerate(value):
            _check_temperature(one or {}, [name, index])


def _check_plain(value: Any, where: list[str | int]) -> None:
    """Numbers that every reader holds, and no deeper nesting than it follows."""
    if isinstance(value, int) and not SMALLEST_INT <= value <= LARGEST_INT:
        raise InvalidBodyError("an integer of more than 64 bits", where)
    if isinstance(value, float) and not isfinite(value):
        raise InvalidBodyError("numbers must be finite", where)
    if isinstance(value, dict | list):
        if len(where) > DEEPEST:
            raise InvalidBodyError(f"nested more than {DEEPEST} levels deep", where[:2])
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            if not isinstance(one, str | bool | None):
                _check_plain(one, [*where, key])


def _check_temperature(params: Mapping[str, Any], where: list[str | int]) -> None:
    value = params.get("temperature")
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not COLDEST <= value <= HOTTEST:
        raise InvalidBodyError(
            f"the temperature must be a number from {COLDEST} to {HOTTEST:g} (greedy completions cannot be trained on)",
            [*where, "temperature"],
        )


def _check_extras(extras: Any, where: list[str | int], sequences: int) -> None:
    if extras is None:
        return
    try:
        found = convert(extras, Extras)
    except ValidationError as error:
        raise from_msgspec(error, where) from error
    if found.completions is not None and len(found.completions) != sequences:
        raise InvalidBodyError(
            f"{len(found.completions)} entries, but the group has {sequences} sequences", [*where, "completions"]
        )
    for index, reason in enumerate(found.stop_reasons or ()):
        if reason is not None and reason not in STOP_REASONS:
            raise InvalidBodyError(f"one of {', '.join(STOP_REASONS)}", [*where, "stop_reasons", index])


def from_msgspec(error: ValidationError, where: Sequence[str | int] = ()) -> InvalidBodyError:
    """msgspec's complaint, with its path as steps below `where`."""
    message, _, path = str(error).partition(" - at `$")
    return InvalidBodyError(message, [*where, *steps(path.rstrip("`"))])


def steps(path: str) -> list[str | int]:
    """`.scores[0]` as its steps."""
    return [
        int(index) if index else name
        for name, index in re.findall(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]", path)
        if index != "..."
    ]
