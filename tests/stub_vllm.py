"""A server with the routes of a vLLM that Shoal launched, for what needs no model: keys, deadlines, broken streams."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any


class StubVllm:
    """What it answers with, and what it was asked. `generate` is `answer`, `break` or `hang`; `status` is that of the
    dialect's /generate."""

    def __init__(self) -> None:
        self.model: dict[str, Any] = {"id": "policy", "root": "some/model", "max_model_len": 4096}
        self.key: str | None = None
        self.tokens: list[int] | None = None
        self.generate = "answer"
        self.status = 200
        self.asked: list[dict[str, Any]] = []
        self.streams = 0
        self.hanging = False
        self.over = Event()
        self.url = ""

    def hang(self) -> None:
        """No answer to a generation or to the workers, until somebody has asked the workers in vain."""
        self.generate, self.hanging = "hang", True

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if "score_from" in request:
            found = [-1.0] * (len(request["prompt"]) - request["score_from"])
            return {"id": request["id"], "tokens": [], "logprobs": found, "reason": "stop"}
        return {"id": request["id"], "tokens": [1], "logprobs": [-0.5], "reason": "stop"}


def handler_of(stub: StubVllm) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def reply(self, body: Any, status: int = 200) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def allowed(self) -> bool:
            return stub.key is None or self.headers.get("Authorization") == f"Bearer {stub.key}"

        def do_GET(self) -> None:
            if self.path == "/health":
                self.reply({})
            elif not self.allowed():
                self.reply({"error": "no"}, 401)
            elif self.path == "/v1/models":
                self.reply({"data": [stub.model]})
            else:
                self.reply({}, 404)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self.allowed():
                self.reply({"error": "no"}, 401)
            elif self.path == "/tokenize":
                self.reply({"tokens": stub.tokens} if stub.tokens is not None else {}, 200 if stub.tokens else 404)
            elif self.path == "/shoal/about":
                self.reply({"tensor_parallel": 1, "max_lora_rank": 0})
            elif self.path == "/shoal/call" and stub.hanging:
                stub.generate, stub.hanging = "answer", False
                stub.over.wait(3)
                self.close_connection = True
            elif self.path == "/shoal/generate":
                self.stream(body["requests"])
            else:
                self.reply({}, stub.status if self.path == "/generate" else 200)

        def stream(self, requests: list[dict[str, Any]]) -> None:
            stub.asked += requests
            stub.streams += 1
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            if stub.generate == "hang":
                stub.over.wait(6)
            for request in requests if stub.generate == "answer" else requests[:1]:
                line = json.dumps(stub.answer(request)).encode() + b"\n"
                self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
            if stub.generate == "answer":
                self.wfile.write(b"0\r\n\r\n")
            else:
                self.close_connection = True

    return Handler


@contextmanager
def stub_vllm() -> Iterator[StubVllm]:
    stub = StubVllm()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(stub))
    server.daemon_threads = True
    stub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        stub.over.set()
        server.shutdown()
        server.server_close()
