"""A judge on loopback: a small OpenAI-compatible server that follows a script."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


@dataclass
class Reply:
    """What the server sends: a chat completion with `content`, or `body` as it is. `delay` is in seconds."""

    content: str | None = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None
    delay: float = 0.0
    usage: dict[str, int] | None = field(default_factory=lambda: {"prompt_tokens": 100, "completion_tokens": 10})


Script = Callable[[str], Reply | str]


class JudgeServer:
    """Answers every request by `script`, a function of the question's text; `bodies` and `times` are what came in."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.now = 0
        self.most_at_once = 0
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else every reply waits 40 ms for an acknowledgement

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.take(body, dict(self.headers), self.path)
                try:
                    self.answer(server.reply(body))
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            def answer(self, reply: Reply) -> None:
                time.sleep(reply.delay)
                with server.lock:  # before the reply is out: the client may ask again the moment that it has it
                    server.now -= 1
                text = (as_completion(reply) if reply.body is None else reply.body).encode()
                self.send_response(reply.status)
                for name, value in {"Content-Length": str(len(text)), **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, format: str, *arguments: Any) -> None:
                """Nothing on stderr."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

        self.http = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def take(self, body: dict[str, Any], headers: dict[str, str], path: str) -> None:
        assert path == "/v1/chat/completions"
        with self.lock:
            self.bodies.append(body)
            self.headers.append(headers)
            self.times.append(time.monotonic())
            self.now += 1
            self.most_at_once = max(self.most_at_once, self.now)

    def reply(self, body: dict[str, Any]) -> Reply:
        given = self.script(body["messages"][0]["content"])
        return Reply(given) if isinstance(given, str) else given

    @property
    def questions(self) -> list[str]:
        return [body["messages"][0]["content"] for body in self.bodies]

    def __enter__(self) -> JudgeServer:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.shutdown()
        self.http.server_close()


def as_completion(reply: Reply) -> str:
    message = {"role": "assistant", "content": reply.content}
    return json.dumps({"choices": [{"index": 0, "message": message}], "usage": reply.usage})


def one_after_another(*replies: Reply | str) -> Script:
    """Answers the first question with the first reply, and so on; the last one again and again."""
    left = list(replies)
    lock = threading.Lock()

    def script(question: str) -> Reply | str:
        with lock:
            return left.pop(0) if len(left) > 1 else left[0]

    return script


def between(text: str, tag: str) -> str:
    """What a question has between `<tag>` and `</tag>`."""
    return text.partition(f"<{tag}>\n")[2].partition(f"\n</{tag}>")[0]


def mark(score: float) -> str:
    return json.dumps({"reasoning": "because", "score": score})
