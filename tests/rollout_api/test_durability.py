"""A server that is killed loses nothing, and a batch that did not arrive comes again."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
from api_server import ApiServer, group, registration, serving

from shoal.cli.command import main

REQUEST_SECONDS = 60


def numbers_of(reply: dict) -> list[int]:
    return [each["tokens"][0][0] for each in reply["batch"] or []]


@pytest.mark.slow
def test_a_killed_server_hands_a_pending_batch_out_again(tmp_path):
    with serving(tmp_path) as server, httpx.Client(base_url=server.url, timeout=REQUEST_SECONDS) as client:
        client.post("/register", json=registration(8))
        for number in range(1, 6):
            client.post("/scored_data", json=group(first=number))
        leased = client.get("/batch?ack=explicit").json()
        server.kill()
    with serving(tmp_path) as server, httpx.Client(base_url=server.url, timeout=REQUEST_SECONDS) as client:
        assert client.get("/status").json()["queue_size"] == 3
        assert client.get("/batch?ack=explicit").json() == leased
        client.post("/ack", json={"lease": leased["lease"]}).raise_for_status()
        server.kill()
    with serving(tmp_path) as server, httpx.Client(base_url=server.url, timeout=REQUEST_SECONDS) as client:
        assert numbers_of(client.get("/batch?ack=explicit").json()) == [3, 4]
        assert client.get("/status").json()["current_step"] == 2
        assert server.stop() == 0


@pytest.mark.slow
def test_a_stock_trainers_batch_that_was_sent_is_not_sent_again_after_a_restart(tmp_path):
    with serving(tmp_path) as server, httpx.Client(base_url=server.url, timeout=REQUEST_SECONDS) as client:
        client.post("/register", json=registration(4))
        for number in (1, 2):
            client.post("/scored_data", json=group(first=number))
        assert numbers_of(client.get("/batch").json()) == [1]
        # That it was sent is written soon after; a post that is answered later is behind it.
        client.post("/scored_data", json=group(first=3))
        server.kill()
    with serving(tmp_path) as server, httpx.Client(base_url=server.url, timeout=REQUEST_SECONDS) as client:
        assert numbers_of(client.get("/batch").json()) == [2]


@pytest.mark.slow
def test_a_batch_whose_reader_went_away_comes_again(tmp_path):
    with serving(tmp_path) as server, httpx.Client(base_url=server.url, timeout=REQUEST_SECONDS) as client:
        client.post("/register", json=registration(256))
        tokens = [[number + 100_000 for number in range(4000)]] * 64
        sent = json.dumps({"tokens": tokens, "masks": tokens, "scores": [1.0] * 64}).encode()
        for _ in range(4):  # 16 MB, more than the buffers between the two hold
            client.post("/scored_data", content=sent).raise_for_status()
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(REQUEST_SECONDS)
            connection.connect(("127.0.0.1", server.port))
            connection.sendall(b"GET /batch HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
            assert client.get("/batch").json()["batch"] is None, "it is on its way to the first reader"
        deadline = time.monotonic() + REQUEST_SECONDS
        seen: list[int] = []
        while not seen and time.monotonic() < deadline:
            seen += [info["id"] for info in client.get("/batch").json().get("groups", [])]
            time.sleep(0.05)
        assert seen == [1, 2, 3, 4]
        assert "shoal_api_redelivered_total 1\n" in client.get("/metrics").text


@pytest.mark.slow
def test_kills_at_random_moments_lose_and_repeat_nothing(tmp_path):
    """Posters that repeat what was not answered, a trainer that journals, a server that is killed again and again."""
    kills, posters, each = 5, 3, 100
    rng = random.Random(0)
    server = ApiServer(tmp_path)
    port, journal, acknowledged = server.port, {}, set()
    end = time.monotonic() + 300
    failures: list[str] = []

    client = httpx.Client(timeout=REQUEST_SECONDS)

    def insist(method: str, path: str, **options) -> httpx.Response:
        while True:
            try:
                answer = client.request(method, f"http://127.0.0.1:{port}{path}", **options)
                assert answer.status_code == 200, answer.text
                return answer
            except httpx.TransportError:
                if time.monotonic() > end:
                    failures.append(f"{path} was not answered")
                    raise
                time.sleep(0.05)

    def poster(index: int) -> None:
        for number in range(each):
            key = f"{index}-{number}"
            insist("POST", "/scored_data", json=group(random.Random(key).randint(1, 5), group_key=key))
            acknowledged.add(key)

    def trainer() -> None:
        while sum(map(len, journal.values())) < posters * each and time.monotonic() < end:
            reply = insist("GET", "/batch?ack=explicit").json()
            if reply["batch"] is None:
                # The last groups do not fill a batch: ask for smaller ones.
                if len(acknowledged) == posters * each:
                    insist("POST", "/register", json=registration(1))
                time.sleep(0.02)
                continue
            keys = [info["key"] for info in reply["groups"]]
            assert journal.setdefault(reply["lease"], keys) == keys, "a lease that comes again is the same batch"
            insist("POST", "/ack", json={"lease": reply["lease"]})

    insist("POST", "/register", json=registration(8))
    threads = [threading.Thread(target=poster, args=(index,)) for index in range(posters)]
    threads.append(threading.Thread(target=trainer))
    for thread in threads:
        thread.start()
    try:
        for _ in range(kills):
            time.sleep(rng.uniform(0.05, 0.6))
            server.kill()
            server = ApiServer(tmp_path, port=port)
        for thread in threads:
            thread.join(300)
        assert not failures
        delivered = [key for keys in journal.values() for key in keys]
        assert sorted(delivered) == sorted(f"{index}-{number}" for index in range(posters) for number in range(each))
        assert httpx.get(f"{server.url}/status").json()["queue_size"] == 0
    finally:
        server.kill()
        client.close()


@pytest.mark.slow
def test_a_second_server_on_the_same_store_is_refused(tmp_path):
    with serving(tmp_path):
        command = [sys.executable, "-m", "shoal.cli", "serve", "api", "--port", "0"]
        ended = subprocess.run(
            [*command, "--store", str(tmp_path / "groups.sqlite")], capture_output=True, text=True, timeout=120
        )
    assert ended.returncode == 2
    assert "another server uses it" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "env", "words"),
    [
        (["--host", "0.0.0.0"], {}, "set SHOAL_API_TRAINER_TOKEN and SHOAL_API_ENV_TOKEN"),
        (["--host", "0.0.0.0"], {"SHOAL_API_TRAINER_TOKEN": "a"}, "set SHOAL_API_ENV_TOKEN"),
        ([], {"SHOAL_API_TRAINER_TOKEN": "a"}, "SHOAL_API_ENV_TOKEN is not set"),
        ([], {"SHOAL_API_TRAINER_TOKEN": "a", "SHOAL_API_ENV_TOKEN": "a"}, "are the same"),
        (["--max-groups", "0"], {}, "--max-groups 0"),
        (["--max-staleness", "-1"], {}, "--max-staleness -1"),
        (["--max-request-mb", "inf"], {}, "--max-request-mb inf"),
        (["--max-gigabytes", "nan"], {}, "--max-gigabytes nan"),
        (["--environment-timeout", "inf"], {}, "--environment-timeout inf"),
        (["--port", "99999"], {}, "--port 99999: a port is a number from 0"),
        (["--port", "-1"], {}, "--port -1"),
        (["--store", "/"], {}, "--store / is a folder"),
        (["--store", "."], {}, "--store . is a folder"),
        (["--store", "/proc/nowhere/groups.sqlite"], {}, "--store /proc/nowhere/groups.sqlite cannot be made"),
        (["--store", "/dev/null/groups.sqlite"], {}, "--store /dev/null/groups.sqlite cannot be made"),
    ],
)
def test_what_cannot_be_served_is_one_line(tmp_path, options, env, words, monkeypatch, capsys):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert main(["serve", "api", "--port", "0", "--store", str(tmp_path / "groups.sqlite"), *options]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert len(error.splitlines()) == 1


def test_a_store_that_is_none_is_told(tmp_path, capsys):
    path = tmp_path / "groups.sqlite"
    path.write_text(json.dumps({"not": "a store"}) * 100)
    assert main(["serve", "api", "--port", "0", "--store", str(path)]) == 2
    assert "--store" in capsys.readouterr().err
