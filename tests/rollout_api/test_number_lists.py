"""The fast path for a group may be unsure, but never wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
from api_server import group
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.rollout_api.protocol import GROUP_KEY
from shoal.rollout_api.server.compression import DeflatedSegment
from shoal.rollout_api.server.intake import ONE, InvalidBodyError, from_fast_parse, full_check, read_groups
from shoal.rollout_api.server.number_lists import KEPT, fast_parse

ROWS = [[1, 2, 3]] * 4
LOGPROBS = [[1.0, -0.1, -1e-07]] * 4


def fast(text: str | bytes):
    body = text if isinstance(text, bytes) else text.encode()
    parsed = fast_parse(body)
    return parsed and from_fast_parse(parsed, body)


def content_of(found) -> Any:
    content = found.content
    return json.loads(content.plain() if isinstance(content, DeflatedSegment) else content)


USUAL = {
    "the least": {},
    "log-probs": {"inference_logprobs": LOGPROBS, "ref_logprobs": LOGPROBS, "advantages": LOGPROBS},
    "whole numbers as log-probs": {"inference_logprobs": [[1, 0, -1]] * 4},
    "nulls": {"advantages": None, "messages": None},
    "messages": {"messages": [[{"role": "user", "content": 'é [1, [2]] \\ " \n'}]] * 4},
    "a version": {"generation_params": {"weights_version": 3, "stop": ["]["]}, "env_id": 0},
    "overrides": {"overrides": [{"temperature": 0.5}] * 4, "group_overrides": {"group_size": 4}, "images": "none"},
}


@pytest.mark.parametrize("name", USUAL)
def test_a_usual_group_takes_the_fast_path(name):
    text = json.dumps(group(**USUAL[name]))
    found = fast(text)
    whole = full_check(ONE.decode(text), drop_extra=False)
    assert found is not None and found._replace(content=b"") == whole._replace(content=b"")
    assert content_of(found) == content_of(whole)


def test_a_key_at_the_front_is_taken_off():
    found = fast(json.dumps({GROUP_KEY: "a[b]", **group()}))
    assert found.key == "a[b]" and GROUP_KEY not in content_of(found)


UNSURE = {
    "a list in a row, alone": json.dumps(group(tokens=[[[1], 2, 3]] * 4)),
    "a list in a row": json.dumps(group(masks=[[1, [2, 3], 3]] * 4)),
    "a list in a row, and a bracket hidden in words": json.dumps(group(tokens=[[[1], 2, 3], *ROWS[1:]]))[:-1]
    + ', "group_overrides": {"a": ["\\u005b"]}}',
    "a list for a log-prob": json.dumps(group(inference_logprobs=[[1.0, -0.5, [-0.5]]] * 4)),
    "an object for a row": json.dumps(group(tokens=[{"a": 1, "b": 2, "c": 3}] * 4)),
    "words for a row": json.dumps(group(tokens=["abc"] * 4)),
    "a field twice": json.dumps(group())[:-1] + ', "tokens": [[1]]}',
    "booleans as scores": json.dumps(group(scores=[True, False, True, False])),
    "a score in a list": json.dumps(group(scores=[[0.5], 0.0, 0.0, 0.0])),
    "no scores": json.dumps(group(scores=None)),
    "no masks": json.dumps(group(masks=None)),
    "scores for fewer": json.dumps(group(scores=[0.5])),
    "a key at the end": json.dumps({**group(), GROUP_KEY: "k"}),
    "a key with an escape": json.dumps({GROUP_KEY: "é", **group()}),
    "one advantage too many": json.dumps(group(advantages=[[0.5] * 4] * 4)),
    "distilled": json.dumps(group(distill_token_ids=[[[1]] * 3] * 4, distill_logprobs=[[[-1.0]] * 3] * 4)),
    "an unknown field": json.dumps({**group(), "more": 1}),
    "a byte order mark": b"\xef\xbb\xbf" + json.dumps(group()).encode(),
}


@pytest.mark.parametrize("name", UNSURE)
def test_what_is_unusual_goes_the_whole_way(name):
    assert fast(UNSURE[name]) is None


def test_a_longer_body_does_not_stay_in_the_parser():
    tokens = [list(range(10_000))] * 8
    text = json.dumps(group(tokens=tokens, masks=tokens, scores=[0.0] * 8))
    assert len(text) > KEPT and fast(text).tokens == 80_000


def test_a_body_that_failed_leaves_the_parser_free():
    for text in ('{"tokens": [[1, "a"]]}', "[1", '{"tokens": 1}', json.dumps(group(tokens=[["a"]]))):
        assert fast(text) is None
    assert fast(json.dumps(group())) is not None


NUMBERS = st.one_of(
    st.integers(-3, 5),
    st.sampled_from([-100, 2**31 - 1, 2**31, 2**63, 2**64, 10**30, 1e300, -0.0, 0.5, -1e-7]),
)
ODD = st.recursive(
    st.one_of(NUMBERS, st.none(), st.booleans(), st.text('[]{},:\\"a', max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("ab"), inner, max_size=2)),
    max_leaves=6,
)
PLAIN = st.integers(0, 9)


def rows_of(entries: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(st.lists(entries, min_size=1, max_size=3), min_size=1, max_size=3)


@st.composite
def groups(draw) -> dict[str, Any]:
    """Right in most places, and odd in one or two."""
    tokens = draw(rows_of(PLAIN))
    made: dict[str, Any] = {"tokens": tokens, "masks": tokens, "scores": [0.5] * len(tokens)}
    for name in draw(st.sets(st.sampled_from(["advantages", "ref_logprobs", "inference_logprobs"]))):
        made[name] = [[-0.5] * len(row) for row in tokens]
    if draw(st.booleans()):
        made["generation_params"] = {"weights_version": 3, "stop": draw(st.lists(st.text('[]{},:\\"a', max_size=4)))}
    match draw(st.sampled_from(["none", "field", "entry", "entry", "row", "value"])):
        case "field":
            made[draw(st.sampled_from(["messages", "generation_params", "overrides", "images", "env_id", "x"]))] = draw(
                ODD
            )
        case "value":
            made[draw(st.sampled_from(sorted(made)))] = draw(ODD)
        case "row" | "entry" as where:
            name = draw(st.sampled_from(sorted(set(made) - {"generation_params"})))
            rows = made[name] = json.loads(json.dumps(made[name]))
            if where == "entry" and isinstance(rows[-1], list):
                rows[-1][-1] = draw(st.one_of(ODD, st.lists(st.one_of(PLAIN, st.just(-0.5)), min_size=1, max_size=2)))
            else:
                rows[-1] = draw(ODD)
    return made


@settings(max_examples=500)
@given(
    made=groups(), ascii_only=st.booleans(), escaped=st.booleans(), spaces=st.sampled_from([(",", ":"), (", ", ": ")])
)
def test_the_fast_path_and_the_full_check_give_the_same_group(made, ascii_only, escaped, spaces):
    text = json.dumps(made, ensure_ascii=ascii_only, separators=spaces)
    if escaped:
        text = text.replace('["', '["\\u005b')
    found = fast(text)
    try:
        whole = full_check(ONE.decode(text), drop_extra=False)
    except (InvalidBodyError, ValueError):
        assert found is None
        return
    if found is not None:
        assert found._replace(content=b"") == whole._replace(content=b"")
        assert content_of(found) == content_of(whole)
    (either,) = read_groups(text.encode(), many=False, drop_extra=False)
    assert content_of(either) == content_of(whole)
