"""How much of judging a step hides behind sampling: wall time of a step against max(sampling, judging).

Serves a judge on loopback that takes `--seconds` a call, and rolls groups out with an engine that gives one group's
completions every `--group-seconds`. Prints the step's wall time beside sampling alone, judging alone and the ratio. The
group that is sampled last can only be judged after all sampling, so no step is shorter than sampling and one call: the
second ratio is to that.

    python benchmarks/judge_overlap.py --groups 16 --seconds 1
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from shoal.config import ShoalConfig
from shoal.engines.base import Engine, EngineOutput, Request, SamplingParams
from shoal.rewards.scorer import Scorer
from shoal.rollout.engine_model import EngineModel
from shoal.rollout.environment import Item
from shoal.rollout.rollouts import Rollouts
from shoal.rollout.single_turn import SingleTurnEnvironment
from shoal.types import Prompt, Segment, StopReason

SIZE = 4
"""Completions of a group."""


class PacedEngine(Engine):
    """Finishes a group's completions together, one group every `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.requests: list[Request] = []
        self.next_at = 0.0

    @property
    def max_length(self) -> int:
        return 1000

    @property
    def in_flight(self) -> int:
        return len(self.requests)

    def submit(self, requests: Sequence[Request]) -> None:
        if not self.requests:
            self.next_at = time.monotonic() + self.seconds
        self.requests += requests

    def poll(self, timeout: float) -> list[EngineOutput]:
        left = self.next_at - time.monotonic()
        if left > 0:
            time.sleep(min(left, timeout))
            return []
        self.next_at += self.seconds
        done, self.requests = self.requests[:SIZE], self.requests[SIZE:]
        return [EngineOutput(one.id, [one.seed % 1000], [-1.0], StopReason.STOP, [(0, 0)]) for one in done]

    def abort(self, ids: Sequence[str]) -> None:
        self.requests = [one for one in self.requests if one.id not in ids]

    def logprobs(self, segments: Sequence[Segment], temperature: float = 1.0) -> list[list[float]]:
        raise NotImplementedError


def judge(seconds: float) -> ThreadingHTTPServer:
    """An OpenAI-compatible judge that takes `seconds` for a call."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(seconds)
            message = {"content": json.dumps({"score": 5})}
            body = json.dumps({"choices": [{"message": message}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    ThreadingHTTPServer.request_queue_size = 128
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def step_seconds(groups: int, group_seconds: float, url: str | None) -> tuple[float, float]:
    """Seconds until all groups are sampled, and until all are scored."""
    cfg = ShoalConfig()
    cfg.reward.judge.base_url = url
    cfg.reward.judge.retries = 0
    cfg.reward.verifiers = {"judge": 1.0} if url else {}
    scorer = Scorer(cfg.reward, {}, None if url else {"none": lambda submission: 0.0})
    environment = SingleTurnEnvironment(cfg, None, lambda ids: f"answer {ids}")
    rollouts = Rollouts(environment, EngineModel(PacedEngine(group_seconds)), scorer)
    items = [
        Item(Prompt(f"p{n}", [n + 1], messages=[{"role": "user", "content": f"question {n}"}])) for n in range(groups)
    ]
    started = time.monotonic()
    made = rollouts.sample(items, size=SIZE, sampling=SamplingParams(1), step=1)
    sampled = time.monotonic() - started
    report = scorer.finish(made, 1)
    scored = time.monotonic() - started
    assert url is None or not report.missing, report.explanation()
    rollouts.close()
    scorer.close()
    return sampled, scored


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one call of the judge")
    parser.add_argument("--group-seconds", type=float, nargs="+", default=[0.25, 1.0, 2.0], help="between two groups")
    options = parser.parse_args()
    server = judge(options.seconds)
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    _, judging = step_seconds(options.groups, 0.0, url)
    print(
        f"{options.groups} groups of {SIZE}, {options.seconds:g} s a call of the judge; judging alone {judging:.2f} s"
    )
    for seconds in options.group_seconds:
        sampling, _ = step_seconds(options.groups, seconds, None)
        _, both = step_seconds(options.groups, seconds, url)
        longer, least = max(sampling, judging), max(sampling + options.seconds, judging)
        print(
            f"sampling {sampling:6.2f} s   step {both:6.2f} s   step / max(sampling, judging) {both / longer:.2f}   "
            f"step / max(sampling + one call, judging) {both / least:.2f}"
        )
    server.shutdown()


if __name__ == "__main__":
    main()
