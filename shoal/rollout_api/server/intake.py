"""From the body of a post to groups that can be stored: parsed, checked, and deflated with all 14 fields.

Fields are kept as the environment wrote them; nothing is serialised again, so no number changes. Most groups are
accepted by the fast path (`number_lists.py`), others by decoding every field. Everything here is a pure function
of bytes, because long bodies are read in a worker process.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, NamedTuple, get_type_hints

from msgspec import DecodeError, Raw, ValidationError
from msgspec.json import Decoder

from shoal.rollout_api.group_fields import InvalidBodyError, check_field, from_msgspec
from shoal.rollout_api.protocol import GROUP_FIELDS, GROUP_KEY, NOT_TRAINED, WEIGHTS_VERSION, ScoredGroup
from shoal.rollout_api.server.compression import DeflatedSegment
from shoal.rollout_api.server.number_lists import REQUIRED, FastParse, fast_parse

PER_TOKEN = ("masks", "advantages", "ref_logprobs", "inference_logprobs", "distill_token_ids", "distill_logprobs")
PER_SEQUENCE = ("scores", "messages", "overrides", *PER_TOKEN)
DECODERS: dict[str, Decoder[Any]] = {
    name: Decoder(kind) for name, kind in get_type_hints(ScoredGroup, include_extras=True).items()
}
DECODERS[GROUP_KEY] = Decoder(get_type_hints(ScoredGroup, include_extras=True)[GROUP_KEY] | None)
ONE: Decoder[dict[str, Raw]] = Decoder(dict[str, Raw])
MANY: Decoder[list[Raw]] = Decoder(list[Raw])
NOT_FINITE = re.compile(rb"NaN|Infinity")
STARTS = {name: b'%c"%b":' % (b"," if index else b"{", name.encode()) for index, name in enumerate(GROUP_FIELDS)}
KEY_FIRST = re.compile(rb'\{\s*"%b"\s*:\s*(?:"[^"\\]*"|null)\s*,\s*' % GROUP_KEY.encode())
NO_LABEL = re.compile(rb"-(?!100[^0-9])")
LARGEST_VERSION = 2**53
SHRINK_FROM = 128 * 1024
"""Groups from so many bytes are deflated when they come in. It is most of the work: shorter ones wait as they are."""


class NewGroup(NamedTuple):
    """A group that was checked. `size` counts its sequences, `tokens` the tokens in them. Short content stays plain."""

    size: int
    tokens: int
    env_id: int | None
    key: str | None
    version: int | None
    content: DeflatedSegment | bytes


def read_groups(body: bytes, *, many: bool, drop_extra: bool) -> list[NewGroup]:
    """The groups in a body: one, or a list of them.

    Raises:
        InvalidBodyError: any of them is wrong; then none is taken.
    """
    try:
        if not many:
            return [_read_group(body, drop_extra)]
        rows = MANY.decode(body)
    except (ValueError, RecursionError) as error:
        raise _refused(error, body) from error
    groups = []
    for index, row in enumerate(rows):
        try:
            groups.append(_read_group(bytes(row), drop_extra))
        except InvalidBodyError as error:
            raise InvalidBodyError(error.message, [index, *error.where]) from error
        except (ValueError, RecursionError) as error:
            refused = _refused(error, bytes(row))
            raise InvalidBodyError(refused.message, [index, *refused.where]) from error
    return groups


def decode(body: bytes, decoder: Decoder[Any]) -> Any:
    """A small message.

    Raises:
        InvalidBodyError: the body is something else.
    """
    try:
        return decoder.decode(body)
    except (ValueError, RecursionError) as error:
        raise _refused(error, body) from error


def _read_group(body: bytes, drop_extra: bool) -> NewGroup:
    plain = body.strip(b" \t\r\n")
    parsed = fast_parse(plain)
    return (parsed and from_fast_parse(parsed, plain)) or full_check(ONE.decode(body), drop_extra)


def from_fast_parse(parsed: FastParse, body: bytes) -> NewGroup | None:
    """The group, stored as it was sent; None if anything about it is unusual."""
    end = _end(parsed.names)
    key = KEY_FIRST.match(body)
    if end is None or (GROUP_KEY in parsed.names and not key):
        return None
    try:
        values = {name: _checked(name, _decode_field(name, text), parsed.lengths) for name, text in parsed.rest.items()}
    except InvalidBodyError:
        return None
    return _new_group(parsed.lengths, values, b"".join((b"{", body[key.end() if key else 1 : -1], end)))


@lru_cache(1000)
def _end(names: tuple[str, ...]) -> bytes | None:
    """What makes a group with these fields whole: the others, null. None where that is not all there is to do."""
    if not set(REQUIRED) <= set(names) <= set(DECODERS) or any(name.startswith("distill") for name in names):
        return None
    return b"".join(b',"%b":null' % name.encode() for name in GROUP_FIELDS if name not in names) + b"}"


def full_check(fields: dict[str, Raw], drop_extra: bool) -> NewGroup:
    """Every field decoded and checked.

    Raises:
        InvalidBodyError: the reason, and the place.
    """
    for name in REQUIRED:
        if name not in fields:
            raise InvalidBodyError("this field is missing", [name])
    for name in fields:
        if name not in DECODERS and not drop_extra:
            near = get_close_matches(name, DECODERS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(GROUP_FIELDS)}"
            raise InvalidBodyError(f"unknown field; {hint}", [name])
    lengths: list[int] = []
    values: dict[str, Any] = {}
    for name in (*GROUP_FIELDS, GROUP_KEY):
        if name in fields:
            value = _decode_field(name, fields[name])
            if name == "masks" and NO_LABEL.search(fields[name]):
                _check_labels(value)
            if name == "tokens":
                lengths = _lengths_of(value)
            # One field at a time, so that a long list is freed before the next one is decoded.
            values[name] = _checked(name, value, lengths)
    if values.get("distill_token_ids") != values.get("distill_logprobs"):
        raise InvalidBodyError("distill_token_ids has another shape", ["distill_logprobs"])
    if bool in map(type, values["scores"]):
        fields["scores"] = Raw(f"[{','.join(str(float(score)) for score in values['scores'])}]".encode())
    parts: list[Any] = []
    for name, start in STARTS.items():
        parts += (start, fields.get(name, b"null"))
    return _new_group(lengths, values, b"".join([*parts, b"}"]))


def _new_group(lengths: list[int], values: dict[str, Any], content: bytes) -> NewGroup:
    return NewGroup(
        size=len(lengths),
        tokens=sum(lengths),
        env_id=values.get("env_id"),
        key=values.get(GROUP_KEY),
        version=_version_of(values.get("generation_params")),
        content=content if len(content) < SHRINK_FROM else DeflatedSegment.of(content),
    )


def _decode_field(name: str, raw: Raw | bytes) -> Any:
    try:
        return DECODERS[name].decode(raw)
    except (ValueError, RecursionError) as error:
        refused = _refused(error, bytes(raw))
        raise InvalidBodyError(refused.message, [name, *refused.where]) from error


def _lengths_of(tokens: list[list[int]]) -> list[int]:
    if not tokens:
        raise InvalidBodyError("a group needs at least one sequence", ["tokens"])
    lengths = list(map(len, tokens))
    if 0 in lengths:
        raise InvalidBodyError("a sequence needs at least one token", ["tokens", lengths.index(0)])
    return lengths


def _checked(name: str, value: Any, lengths: list[int]) -> Any:
    """What is kept of a value for later checks."""
    if value is None:
        return None
    # An empty list of messages is what some environments send for none.
    if name in PER_SEQUENCE and len(value) != len(lengths) and not (name == "messages" and not value):
        raise InvalidBodyError(f"{len(value)} entries, but tokens has {len(lengths)} sequences", [name])
    if name in PER_TOKEN and list(map(len, value)) != lengths:
        for index, (row, length) in enumerate(zip(value, lengths, strict=True)):
            # Atropos's own tests send one advantage more than there are tokens; nobody reads what is too many.
            if len(row) < length or (len(row) > length and name != "advantages"):
                raise InvalidBodyError(f"{len(row)} entries, but the sequence has {length} tokens", [name, index])
    if name == "messages":
        _check_messages(value)
    check_field(name, value, len(lengths))
    if name.startswith("distill"):
        return [[len(position) for position in sequence] for sequence in value]
    return value if name in ("scores", "env_id", GROUP_KEY, "generation_params") else None


def _check_labels(rows: list[list[int]]) -> None:
    for index, row in enumerate(rows):
        for position, label in enumerate(row):
            if label < 0 and label != NOT_TRAINED:
                message = f"{label} is no label: {NOT_TRAINED} (not trained) or a token's id"
                raise InvalidBodyError(message, ["masks", index, position])


def _check_messages(conversations: list[list[dict[str, Any]]]) -> None:
    for index, messages in enumerate(conversations):
        for position, message in enumerate(messages):
            missing = [name for name in ("role", "content") if name not in message]
            if missing:
                raise InvalidBodyError(f"a message needs {missing[0]}", ["messages", index, position])


def _version_of(params: dict[str, Any] | None) -> int | None:
    version = (params or {}).get(WEIGHTS_VERSION)
    if version is None:
        return None
    if type(version) is not int or not 0 <= version < LARGEST_VERSION:
        raise InvalidBodyError("no weights version: a number from 0", ["generation_params", WEIGHTS_VERSION])
    return version


def _refused(error: ValueError | RecursionError, body: bytes) -> InvalidBodyError:
    """The parser's complaint, in a person's words."""
    if isinstance(error, RecursionError):
        return InvalidBodyError("nested too deeply")
    if isinstance(error, ValidationError):
        return from_msgspec(error)
    if isinstance(error, DecodeError):
        at = re.search(r"byte (\d+)", str(error))
        if at and NOT_FINITE.search(body, max(0, int(at[1]) - 2), int(at[1]) + 10):
            return InvalidBodyError(f"NaN and Infinity are no JSON: numbers must be finite (byte {at[1]})")
    return InvalidBodyError(f"no JSON: {error}")
