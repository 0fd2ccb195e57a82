"""Requests that are refused: a 4xx with a reason, a server that stays up, and nothing stored is harmed."""

from __future__ import annotations

import gzip
import json
import socket
import zlib

import httpx
import pytest
from api_server import ApiServer, environment, group, registration, serving

TOO_LONG = 5 * 2**20


def text_of(**values) -> str:
    return json.dumps(group(**values))


def without(content: dict, name: str) -> dict:
    return {key: value for key, value in content.items() if key != name}


def extra(**values) -> dict:
    """A group with fields that Shoal's own environments add."""
    return group(generation_params={"shoal": values})


GROUPS = {
    # (a group, or the text of one) -> where the reply must point to
    "no tokens": (without(group(), "tokens"), ["tokens"]),
    "no masks": (without(group(), "masks"), ["masks"]),
    "no scores": (without(group(), "scores"), ["scores"]),
    "an empty object": ({}, ["tokens"]),
    "a list": ([], []),
    "a string": ("group", []),
    "a number": (7, []),
    "null": (None, []),
    "tokens null": (group(tokens=None), ["tokens"]),
    "tokens a string": (group(tokens="1 2"), ["tokens"]),
    "tokens flat": (group(tokens=[1, 2, 3, 4]), ["tokens", 0]),
    "tokens of strings": (group(tokens=[["1", "2", "3"]] * 4), ["tokens", 0, 0]),
    "tokens of fractions": (group(tokens=[[1, 2.5, 3]] * 4), ["tokens", 0, 1]),
    "tokens of booleans": (group(tokens=[[1, True, 3]] * 4), ["tokens", 0, 1]),
    "a negative token": (group(tokens=[[1, -2, 3]] * 4), ["tokens", 0, 1]),
    "a huge token": (group(tokens=[[1, 2**31, 3]] * 4), ["tokens", 0, 1]),
    "a token of 40 digits": (group(tokens=[[1, 10**40, 3]] * 4), ["tokens", 0, 1]),
    "no sequence": (group(tokens=[], masks=[], scores=[]), ["tokens"]),
    "an empty sequence": (group(tokens=[[1, 2, 3]] * 3 + [[]]), ["tokens", 3]),
    "too few masks": (group(masks=[[-100, 2, 3]] * 3), ["masks"]),
    "a short mask": (group(masks=[[-100, 2, 3]] * 3 + [[-100, 2]]), ["masks", 3]),
    "a label of -1": (group(masks=[[-1, 2, 3]] * 4), ["masks", 0, 0]),
    "a label of -1001": (group(masks=[[-1001, 2, 3]] * 4), ["masks", 0, 0]),
    "too few scores": (group(scores=[1.0]), ["scores"]),
    "too many scores": (group(scores=[1.0] * 5), ["scores"]),
    "scores a number": (group(scores=1.0), ["scores"]),
    "a score null": (group(scores=[1.0, None, 0.0, 0.0]), ["scores", 1]),
    "a score in words": (group(scores=["high", 0.0, 0.0, 0.0]), ["scores", 0]),
    "a score NaN": (group(scores=[float("nan"), 0.0, 0.0, 0.0]), []),
    "a score Infinity": (group(scores=[float("inf"), 0.0, 0.0, 0.0]), []),
    "a score of 1e999": (text_of().replace("[0.0, 1.0", "[1e999, 1.0"), ["scores", 0]),
    "a log-prob -Infinity": (group(inference_logprobs=[[1.0, float("-inf"), -1.0]] * 4), []),
    "too few log-probs": (group(inference_logprobs=[[1.0, -1.0]] * 4), ["inference_logprobs", 0]),
    "too many log-probs": (group(inference_logprobs=[[1.0, -1.0, -1.0, -1.0]] * 4), ["inference_logprobs", 0]),
    "log-probs of three sequences": (group(inference_logprobs=[[1.0, -1.0, -1.0]] * 3), ["inference_logprobs"]),
    "reference log-probs flat": (group(ref_logprobs=[-1.0] * 4), ["ref_logprobs", 0]),
    "reference log-probs short": (group(ref_logprobs=[[-1.0]] * 4), ["ref_logprobs", 0]),
    "too few advantages": (group(advantages=[[1.0, 1.0]] * 4), ["advantages", 0]),
    "advantages in words": (group(advantages=[["a", "b", "c"]] * 4), ["advantages", 0, 0]),
    "messages without a role": (group(messages=[[{"content": "a"}]] * 4), ["messages", 0, 0]),
    "messages without content": (group(messages=[[{"role": "user"}]] * 4), ["messages", 0, 0]),
    "messages of two sequences": (group(messages=[[]] * 2), ["messages"]),
    "messages of strings": (group(messages=[["hello"]] * 4), ["messages", 0, 0]),
    "overrides for one sequence": (group(overrides=[{}]), ["overrides"]),
    "overrides of numbers": (group(overrides=[1, 2, 3, 4]), ["overrides", 0]),
    "group_overrides a list": (group(group_overrides=[]), ["group_overrides"]),
    "generation_params a number": (group(generation_params=1), ["generation_params"]),
    "a number too large in generation_params": (
        text_of(generation_params={"x": 1.5}).replace("1.5", "1e999"),
        ["generation_params"],
    ),
    "a huge score": (group(scores=[1e30, 0.0, 0.0, 0.0]), ["scores", 0]),
    "huge advantages": (group(advantages=[[0.0, 0.0, -1e30]] * 4), ["advantages", 0, 2]),
    "huge log-probs": (group(inference_logprobs=[[1.0, -1e30, -1.0]] * 4), ["inference_logprobs", 0, 1]),
    "huge reference log-probs": (group(ref_logprobs=[[1.0, -1e30, -1.0]] * 4), ["ref_logprobs", 0, 1]),
    "a temperature near 0": (group(generation_params={"temperature": 1e-300}), ["generation_params", "temperature"]),
    "a temperature in words": (group(group_overrides={"temperature": "hot"}), ["group_overrides", "temperature"]),
    "a temperature of true": (group(overrides=[{}, {"temperature": True}, {}, {}]), ["overrides", 1, "temperature"]),
    "versions as text": (extra(versions="0"), ["generation_params", "shoal", "versions"]),
    "a version as text": (extra(versions=[[[0, "1"]]]), ["generation_params", "shoal", "versions", 0, 0, 1]),
    "reward parts as lists": (extra(reward_parts=[[1.0]]), ["generation_params", "shoal", "reward_parts", 0]),
    "penalties as text": (extra(penalties="none"), ["generation_params", "shoal", "penalties"]),
    "a source of a number": (extra(source=3), ["generation_params", "shoal", "source"]),
    "an unknown stop reason": (extra(stop_reasons=["tired"]), ["generation_params", "shoal", "stop_reasons", 0]),
    "completions of two sequences": (extra(completions=[0, 1]), ["generation_params", "shoal", "completions"]),
    "extras as a list": (group(generation_params={"shoal": []}), ["generation_params", "shoal"]),
    "an integer of 100 bits": (group(images={"a": [0, 2**100]}), ["images", "a", 1]),
    "an integer of 100 bits in messages": (
        group(messages=[[{"role": "user", "content": 2**100}]] * 4),
        ["messages", 0, 0, "content"],
    ),
    "deep images": (group(images=json.loads("[" * 100 + "]" * 100)), ["images", 0]),
    "half a surrogate": (text_of(generation_params={"x": "@"}).replace("@", "\\ud800"), []),
    "a version in words": (group(generation_params={"weights_version": "3"}), ["generation_params", "weights_version"]),
    "a negative version": (group(generation_params={"weights_version": -1}), ["generation_params", "weights_version"]),
    "an unknown field": (group(nonsense=1), ["nonsense"]),
    "a misspelt field": (group(inference_logprob=[]), ["inference_logprob"]),
    "a negative environment": (group(env_id=-1), ["env_id"]),
    "an unknown environment": (group(env_id=7), ["env_id"]),
    "an environment in words": (group(env_id="0"), ["env_id"]),
    "an environment with a fraction": (group(env_id=0.5), ["env_id"]),
    "an empty key": (group(group_key=""), ["group_key"]),
    "a key of 201 letters": (group(group_key="k" * 201), ["group_key"]),
    "a key that is a number": (group(group_key=1), ["group_key"]),
    "distillation of another shape": (
        group(distill_token_ids=[[[1]] * 3] * 4, distill_logprobs=[[[-1.0, -2.0]] * 3] * 4),
        ["distill_logprobs"],
    ),
    "distillation without log-probs": (group(distill_token_ids=[[[1]] * 3] * 4), ["distill_logprobs"]),
    "distillation of too few positions": (
        group(distill_token_ids=[[[1]]] * 4, distill_logprobs=[[[-1.0]]] * 4),
        ["distill_token_ids", 0],
    ),
    "half a group": (text_of()[:-10], []),
    "text behind the group": (text_of() + "x", []),
    "brackets without end": ("[" * 100_000, []),
    "objects without end": ('{"tokens":' * 50_000, []),
    "images without end": (text_of()[:-1] + ', "images": ' + "[" * 5000 + "]" * 5000 + "}", []),
    "no JSON": ("tokens=1&masks=1", []),
    "a single quote": ("'", []),
    "a number with a leading zero": (text_of().replace("[1, 2", "[01, 2"), []),
    "a comma too many": (text_of().replace("[1, 2, 3]", "[1, 2, 3,]"), []),
    "bytes that are no text": (b'{"tokens": [[1]], "masks": [[1]], "scores": [1], "images": "\xff"}', ["images"]),
    "a field name that is no text": (b'{"\xff": 1}', []),
    "UTF-16": (text_of().encode("utf-16"), []),
    "nothing": (b"", []),
}


def encoded(content) -> bytes:
    if isinstance(content, bytes):
        return content
    is_text = isinstance(content, str) and content != "group"
    return content.encode() if is_text else json.dumps(content).encode()


@pytest.fixture
def filled(server):
    """A server with a trainer, an environment and one good group; afterwards they must be as they were."""
    server.post("/register", json=registration(4)).raise_for_status()
    server.get("/batch").raise_for_status()
    server.post("/register-env", json=environment()).raise_for_status()
    server.post("/scored_data", json=group(first=42, env_id=0)).raise_for_status()
    before = server.get("/status").json(), server.get("/info").json()
    yield server
    assert (server.get("/status").json(), server.get("/info").json()) == before
    assert server.get("/latest_example").json()["tokens"][0] == [42, 2, 3]
    status = server.request("GET", "/status-env", json={"env_id": 0})
    assert status.json()["self_queue_size"] == 1
    (kept,) = server.get("/batch").json()["batch"]
    assert kept["tokens"] == [[42, 2, 3]] * 4


@pytest.mark.parametrize("name", GROUPS)
def test_a_wrong_group_is_refused_at_its_place(filled, name):
    content, where = GROUPS[name]
    answer = filled.post("/scored_data", content=encoded(content), headers={"content-type": "application/json"})
    assert answer.status_code == 422, answer.text
    (detail,) = answer.json()["detail"]
    assert detail["loc"] == ["body", *where]
    assert len(detail["msg"]) > 5


@pytest.mark.parametrize(
    "name", ["no scores", "a short mask", "an unknown environment", "a score of 1e999", "an unknown field"]
)
def test_one_wrong_group_refuses_a_whole_list_and_says_which(filled, name):
    content, where = GROUPS[name]
    body = b"[" + b",".join([encoded(group()), encoded(content), encoded(group())]) + b"]"
    answer = filled.post("/scored_data_list", content=body)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", 1, *where]


REGISTRATIONS = [
    ("/register", without(registration(), "batch_size")),
    ("/register", registration(batch_size=0)),
    ("/register", registration(batch_size=-8)),
    ("/register", registration(batch_size=2**40)),
    ("/register", registration(batch_size="8")),
    ("/register", registration(batch_size=8.5)),
    ("/register", registration(wandb_project=None)),
    ("/register", registration(starting_step=-1)),
    ("/register", registration(max_token_len=10**30)),
    ("/register", []),
    ("/register-env", without(environment(), "group_size")),
    ("/register-env", environment(group_size=0)),
    ("/register-env", environment(weight=-1.0)),
    ("/register-env", environment(weight=1e300)),
    ("/register-env", environment(min_batch_allocation=1.5)),
    ("/register-env", environment(min_batch_allocation=-0.1)),
    ("/register-env", environment(name=3)),
    ("/register-env", environment(max_token_length=0)),
    ("/disconnect-env", {}),
    ("/disconnect-env", {"env_id": -1}),
    ("/disconnect-env", {"env_id": None}),
    ("/ack", {}),
    ("/ack", {"lease": -1}),
    ("/ack", {"lease": "1"}),
    ("/ack", {"lease": 1, "weights_version": -1}),
    ("/scored_data_list", {}),
    ("/scored_data_list", group()),
    ("/scored_data_list", [1]),
]


@pytest.mark.parametrize(("path", "content"), REGISTRATIONS)
def test_a_wrong_message_is_refused(filled, path, content):
    answer = filled.post(path, json=content)
    assert answer.status_code == 422, answer.text
    assert answer.json()["detail"][0]["loc"][0] == "body"


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("POST", "/disconnect-env", {"env_id": 5}, 404),
        ("GET", "/status-env", {"env_id": 5}, 404),
        ("GET", "/status-env", {"env_id": -1}, 422),
        ("GET", "/status-env", None, 422),
        ("GET", "/status-env?env_id=0", None, 422),
        ("POST", "/ack", {"lease": 2**53 - 1}, 404),
        ("POST", "/ack", {"lease": 0}, 404),
        ("GET", "/batch?ack=perhaps", None, 422),
        ("GET", "/batch?weights_version=-1", None, 422),
        ("GET", "/batch?weights_version=new", None, 422),
        ("GET", "/batch?weights_version=99999999999999999999", None, 422),
        ("GET", "/scored_data", None, 405),
        ("POST", "/batch", {}, 405),
        ("DELETE", "/reset_data", None, 405),
        ("POST", "/reset_data", {}, 405),
        ("GET", "/nothing", None, 404),
        ("POST", "/scored_data/", group(), 404),
    ],
)
def test_what_is_unknown_or_asked_wrongly_is_refused(filled, method, path, content, status):
    answer = filled.request(method, path, json=content)
    assert answer.status_code == status, answer.text
    assert answer.json()["detail"]


def test_a_batch_before_the_registration_is_out_of_order(server):
    assert server.get("/batch").status_code == 409
    assert server.get("/batch?ack=explicit").status_code == 409
    assert server.post("/disconnect-env", json={"env_id": 0}).json()["status"] == "failure"


zipped = gzip.compress(encoded(group()))
BODIES = {
    "a gzip cut off": (zipped[:-9], {"content-encoding": "gzip"}, 400),
    "half a header of gzip": (zipped[:4], {"content-encoding": "gzip"}, 400),
    "a gzip with a wrong checksum": (zipped[:-8] + bytes(8), {"content-encoding": "gzip"}, 400),
    "text called gzip": (b"{}", {"content-encoding": "gzip"}, 400),
    "gzip with a tail": (zipped + b"tail", {"content-encoding": "gzip"}, 400),
    "gzip of wrong JSON": (gzip.compress(b"{"), {"content-encoding": "gzip"}, 422),
    "gzip not called so": (zipped, {}, 422),
    "deflate": (zlib.compress(b"{}"), {"content-encoding": "deflate"}, 415),
    "an unknown encoding": (b"{}", {"content-encoding": "br"}, 415),
    "a zip bomb": (gzip.compress(bytes(200 * 2**20)), {"content-encoding": "gzip"}, 413),
    "a zip bomb in a bomb": (gzip.compress(gzip.compress(bytes(50 * 2**20))), {"content-encoding": "gzip"}, 422),
    "a bomb of valid JSON": (gzip.compress(b"[" + b"1," * TOO_LONG + b"1]"), {"content-encoding": "gzip"}, 413),
    "a long body": (b" " * TOO_LONG, {}, 413),
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("path", ["/scored_data", "/scored_data_list"])
def test_a_body_that_cannot_be_read_is_refused(filled, name, path):
    body, headers, status = BODIES[name]
    answer = filled.post(path, content=body, headers=headers)
    assert answer.status_code == status, answer.text
    assert answer.json()["detail"]


def test_a_long_body_of_unannounced_length_is_refused(filled):
    def parts():
        for _ in range(TOO_LONG // 2**16):
            yield b" " * 2**16

    assert filled.post("/scored_data", content=parts()).status_code == 413


def test_a_small_message_may_not_be_long(filled):
    assert filled.post("/register", content=b" " * 70_000).status_code == 413


@pytest.mark.parametrize(
    "request_text",
    [
        "nonsense\r\n\r\n",
        "POST /scored_data HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        "POST /scored_data HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused(filled, request_text):
    address = filled.base_url.host, filled.base_url.port
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(request_text.encode())
        assert b" 400 " in connection.recv(1000)


def test_a_client_that_leaves_in_the_middle_of_a_body_harms_nothing(filled):
    address = filled.base_url.host, filled.base_url.port
    for length in (500, 10**6):
        with socket.create_connection(address, timeout=60) as connection:
            head = f"POST /scored_data HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
            connection.sendall(head.encode() + b'{"tokens": [[')


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_web_pages_may_not_ask(filled, headers):
    for path in ("/reset_data", "/batch", "/status"):
        assert filled.get(path, headers=headers).status_code == 403


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A server that asks for tokens."""
    env = {"SHOAL_API_TRAINER_TOKEN": "for-trainers", "SHOAL_API_ENV_TOKEN": "for-environments"}
    with serving(tmp_path_factory.mktemp("guarded"), env=env) as running:
        yield running


TRAINER_PATHS = [
    ("GET", "/batch"),
    ("POST", "/register"),
    ("POST", "/ack"),
    ("GET", "/reset_data"),
    ("GET", "/latest_example"),
]
ENVIRONMENT_PATHS = [
    ("POST", "/register-env"),
    ("POST", "/disconnect-env"),
    ("GET", "/status-env"),
    ("POST", "/scored_data"),
    ("POST", "/scored_data_list"),
]
COMMON_PATHS = [("GET", "/info"), ("GET", "/status"), ("GET", "/wandb_info"), ("GET", "/metrics")]


def status_of(server: ApiServer, method: str, path: str, **options) -> int:
    return httpx.request(method, server.url + path, timeout=60, **options).status_code


@pytest.mark.parametrize(("method", "path"), TRAINER_PATHS + ENVIRONMENT_PATHS + COMMON_PATHS)
def test_without_a_right_token_nothing_is_answered(guarded, method, path):
    assert status_of(guarded, method, path) == 401
    for header in (
        "Bearer wrong",
        "for-trainers",
        "Basic !!!",
        "Basic Zm9v",
        "Bearer for-trainers2",
        "Bearer é",
    ):
        headers = {"authorization": header.encode("latin-1")}
        assert status_of(guarded, method, path, headers=headers) == 401


@pytest.mark.parametrize(("method", "path"), TRAINER_PATHS + ENVIRONMENT_PATHS)
def test_the_other_roles_token_is_not_enough(guarded, method, path):
    other = "for-environments" if (method, path) in TRAINER_PATHS else "for-trainers"
    assert status_of(guarded, method, path, headers={"authorization": f"Bearer {other}"}) == 403


def test_tokens_are_taken_as_bearer_and_as_password_of_the_url(guarded):
    for token, posts, path in (
        ("for-trainers", registration(), "/register"),
        ("for-environments", group(), "/scored_data"),
    ):
        assert status_of(guarded, "POST", path, json=posts, headers={"authorization": f"Bearer {token}"}) == 200
        assert status_of(guarded, "POST", path, json=posts, auth=("anybody", token)) == 200
        for common in COMMON_PATHS:
            assert status_of(guarded, *common, headers={"authorization": f"Bearer {token}"}) == 200
    for path in ("/", "/healthz"):
        assert status_of(guarded, "GET", path) == 200


def test_an_unknown_path_needs_a_token_too(guarded):
    assert status_of(guarded, "GET", "/nothing") == 401
