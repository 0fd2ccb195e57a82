"""A server of scored groups in a few lines, in memory: what the tests of single keys talk to. The real ones,
Shoal's and Atropos's, are in tests/rollout_api."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class SmallApi:
    """The paths that Shoal's clients use, with a stock server's answers. `seen` keeps every request's path and body.

    `busy` is how many requests are turned away with 503 first; `steps_left` how many batches are handed out before the
    environment is told that the trainer has all it needs.
    """

    url = "memory"
    timeout = 60.0

    def __init__(self, batch_size: int = 0, num_steps: int = 1) -> None:
        self.batch_size, self.num_steps = batch_size, num_steps
        self.seen: list[tuple[str, Any]] = []
        self.queue: list[dict[str, Any]] = []
        self.step = 0
        self.busy = 0

    def get(self, path: str, body: Any = None) -> Any:
        return self.answer(path, body)

    def post(self, path: str, body: Any) -> Any:
        return self.answer(path, body)

    def wait_for(self, once: Callable[[], Any]) -> Any:
        return once()

    def say(self, text: str) -> None:
        """Nobody listens."""

    def answer(self, path: str, body: Any) -> Any:
        path = path.partition("?")[0]
        self.seen.append((path, body))
        if path == "/register":
            self.batch_size, self.num_steps = body["batch_size"], body["num_steps"]
            return {"uuid": 1}
        if path == "/info":
            return {"batch_size": self.batch_size, "max_token_len": 512}
        if path == "/register-env":
            registered = {"env_id": 0, "wandb_name": "e_0", "starting_step": self.step, "num_steps": self.num_steps}
            return {"status": "success", **registered}
        if path in ("/status", "/status-env"):
            return {"current_step": self.step, "queue_size": len(self.queue)}
        if path == "/scored_data_list":
            self.queue += body
            return {"status": "received", "groups_processed": len(body)}
        if path == "/batch":
            return {"batch": self.take()}
        return {"status": "success"}

    def take(self) -> list[dict[str, Any]] | None:
        """Whole groups, the oldest first, once they make a batch."""
        taken: list[dict[str, Any]] = []
        for group in self.queue:
            taken.append(group)
            if sum(len(one["tokens"]) for one in taken) >= self.batch_size:
                del self.queue[: len(taken)]
                self.step += 1
                return taken
        return None

    def bodies(self, path: str) -> list[Any]:
        """What was sent to one path."""
        return [body for seen, body in self.seen if seen == path]

    @contextmanager
    def served(self) -> Iterator[str]:
        """Serves it over HTTP; gives the address."""
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                content = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                if self.headers.get("Content-Encoding") == "gzip":
                    content = gzip.decompress(content)
                busy = api.busy > 0
                api.busy -= busy
                answer = {} if busy else api.answer(self.path, json.loads(content) if content else None)
                text = json.dumps(answer).encode()
                self.send_response(503 if busy else 200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_POST = do_GET

            def log_message(self, form: str, *words: Any) -> None:
                """Nothing is logged."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            server.daemon_threads = True
            thread = Thread(target=server.serve_forever, daemon=True)
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}"
            finally:
                server.shutdown()
                thread.join()
