"""A real atroposlib environment serves this server, until its last step; the trainer asks like a stock one."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from api_server import registration
from atropos_python import atropos_python

SECONDS = 300
STEPS, GROUP, BATCH = 10, 4, 8


class Generate(BaseHTTPRequestHandler):
    """`/generate` in vLLM's dialect, of a policy that counts: the environment is what is tested here."""

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        start = body["prompt"]["prompt_token_ids"][-1]
        ids = [[start + index + offset for offset in range(body["max_tokens"])] for index in range(body["n"])]
        logprobs = [[[{str(id_): -0.25}] for id_ in each] for each in ids]
        self._answer({"logprobs": logprobs, "finish_reasons": ["length"] * len(ids), "text": [""] * len(ids)})

    def _answer(self, content: dict) -> None:
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_) -> None:
        """Nothing."""


@contextmanager
def generating():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Generate)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
def test_a_stock_environment_feeds_a_stock_trainer(server, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt_ids": [1, 2, n], "answer_ids": [n + 5]}) for n in range(3, 9)))
    server.post("/register", json=registration(BATCH, num_steps=STEPS)).raise_for_status()
    assert server.get("/batch").json()["batch"] is None
    with generating() as generate, (tmp_path / "log").open("w") as log:
        command = [atropos_python(), str(Path(__file__).with_name("atropos_env.py")), "--api", str(server.base_url)]
        command += ["--generate", generate, "--prompts", str(prompts), "--group-size", str(GROUP)]
        environment = subprocess.Popen(
            [*command, "--steps", str(STEPS), "--max-tokens", "6"],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
            stdout=log,
            stderr=log,
        )
        try:
            batches, end = [], time.monotonic() + SECONDS
            while len(batches) < STEPS:
                assert time.monotonic() < end and environment.poll() is None, (tmp_path / "log").read_text()[-3000:]
                batch = server.get("/batch").json()["batch"]
                batches += [batch] if batch else []
                time.sleep(0.1)
            # BaseEnv ends when what waits would be more than its steps.
            assert environment.wait(SECONDS) == 0, (tmp_path / "log").read_text()[-3000:]
        finally:
            environment.kill()
            environment.wait()
    for batch in batches:
        assert sum(len(each["tokens"]) for each in batch) == BATCH
        for each in batch:
            assert each["env_id"] == 0
            assert each["masks"][0][:3] == [-100] * 3
            assert each["masks"][0][3:] == each["tokens"][0][3:]
            assert each["inference_logprobs"][0] == [1.0] * 3 + [-0.25] * 6
            assert 1.0 in each["scores"]
