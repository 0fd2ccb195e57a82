"""`shoal serve code` and its client, over loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from shoal.errors import ConfigError
from shoal.rewards.base import Submission
from shoal.rewards.sandbox.client import TOKEN_VARIABLE, run_there
from shoal.rewards.sandbox.limits import Limits
from shoal.rewards.sandbox.outcome import SandboxError, Status, Tests
from shoal.rewards.sandbox.serve import CodeServer
from shoal.rewards.verifiers.code import code

ADD = "def add(a, b): return a + b"
TESTS = Tests.from_json(["assert add(1, 2) == 3", "assert add(1, 2) == 4"])


@contextmanager
def serving(workers: int = 2, host: str = "127.0.0.1"):
    server = CodeServer(host, 0, tier="bubblewrap", python=None, workers=workers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answer_of(request: Request) -> tuple[int, dict]:
    try:
        with urlopen(request, timeout=60) as reply:
            return reply.status, json.load(reply)
    except HTTPError as error:
        return error.code, json.load(error)


def test_the_server_gives_what_the_sandbox_gives(bubblewrap, limits):
    with serving() as (_, url):
        there = run_there(url, ADD, TESTS, limits, total_seconds=60)
        here = bubblewrap.run(ADD, TESTS, limits)
    assert [(r.status, r.detail) for r in there] == [(r.status, r.detail) for r in here]
    assert [r.status for r in there] == [Status.PASSED, Status.WRONG]


def test_the_verifier_asks_the_server(bubblewrap):
    with serving() as (server, url):
        score = code(Submission(f"```python\n{ADD}\n```", TESTS.to_json()), url=url, seconds=20.0, total_seconds=60.0)
        assert score == 0.5
        assert server.done == 1


def test_several_programs_run_at_once_and_no_more_than_the_workers(bubblewrap, monkeypatch):
    program = "import time\ntime.sleep(1.5)"
    tests = Tests.from_json([{"input": "", "output": ""}])
    with serving(workers=2) as (server, url), ThreadPoolExecutor(4) as pool:
        run, running, at_once = server.sandbox.run, set(), []

        def counted(*arguments, **options):
            running.add(threading.get_ident())
            at_once.append(len(running))
            try:
                return run(*arguments, **options)
            finally:
                running.discard(threading.get_ident())

        monkeypatch.setattr(server.sandbox, "run", counted)
        jobs = [pool.submit(run_there, url, program, tests, Limits(seconds=20), total_seconds=60) for _ in range(4)]
        assert all(job.result()[0].passed for job in jobs)
    assert len(at_once) == 4 and max(at_once) == 2


def test_a_full_queue_says_come_back(bubblewrap, limits):
    with serving(workers=1) as (server, url):
        taken = 0
        while server.places.acquire(blocking=False):
            taken += 1
        body = json.dumps({"program": ADD, "tests": TESTS.to_json()}).encode()
        status, said = answer_of(Request(url + "/run", body))
        assert (status, taken) == (503, 65)  # one worker and 64 places
        assert "queue is full" in said["error"]
        threading.Timer(0.5, server.places.release).start()
        assert len(run_there(url, ADD, TESTS, limits, total_seconds=60)) == 2  # the client did come back


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/run", b"{}", 400),
        ("/run", b"not json", 400),
        ("/run", b"[]", 400),
        ("/run", b'{"program": "x", "tests": []}', 400),
        ("/run", b'{"program": "x", "tests": ["a"], "limits": {"fame": 1}}', 400),
        ("/run", b'{"tests": ["a"]}', 400),
        ("/run", b'{"program": "x = 1", "tests": ["assert ("]}', 500),
        ("/other", b"{}", 404),
        ("/other", None, 404),
    ],
)
def test_a_bad_request_is_answered_with_the_reason(bubblewrap, path, body, status):
    with serving() as (_, url):
        code, said = answer_of(Request(url + path, body))
    assert code == status
    assert said["error"]


def test_health_tells_the_tier(bubblewrap):
    with serving(workers=3) as (_, url):
        assert answer_of(Request(url + "/health")) == (200, {"tier": "bubblewrap", "workers": 3, "done": 0})


def test_a_public_address_needs_a_token(bubblewrap, monkeypatch, limits):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=TOKEN_VARIABLE):
        CodeServer("0.0.0.0", 0, tier="bubblewrap", python=None, workers=1)
    monkeypatch.setenv(TOKEN_VARIABLE, "a-secret")
    with serving() as (_, url):
        assert len(run_there(url, ADD, TESTS, limits, total_seconds=60)) == 2
        monkeypatch.setenv(TOKEN_VARIABLE, "another")
        with pytest.raises(SandboxError, match="401"):
            run_there(url, ADD, TESTS, limits, total_seconds=60)
        monkeypatch.delenv(TOKEN_VARIABLE)
        with pytest.raises(SandboxError, match="401"):
            run_there(url, ADD, TESTS, limits, total_seconds=60)


def test_a_port_that_is_taken_is_bad_input(bubblewrap):
    with serving() as (server, _), pytest.raises(ConfigError, match="choose another --port"):
        CodeServer("127.0.0.1", server.server_port, tier="bubblewrap", python=None, workers=1)


def test_the_command_serves_until_it_is_told_to_end(bubblewrap, limits):
    command = [sys.executable, "-m", "shoal.cli", "serve", "code", "--port", "0", "--workers", "1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), *sys.path]))}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            assert "tier bubblewrap, 1 workers" in line
            assert len(run_there(line.split()[-1], ADD, TESTS, limits, total_seconds=60)) == 2
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def test_the_command_refuses_a_tier_that_is_missing(tmp_path):
    command = [sys.executable, "-m", "shoal.cli", "serve", "code", "--port", "0"]
    environment = {
        **os.environ,
        "PATH": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), *sys.path])),
    }
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert run.returncode == 2
    assert run.stderr.strip().count("\n") == 0
    assert "apt-get install bubblewrap" in run.stderr
