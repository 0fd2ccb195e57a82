"""Shoal's rollout API against Atropos's `run-api`, in turn: `python benchmarks/rollout_api.py --atropos-python FILE`.

Prints: seconds of /batch at 64 x 8192 tokens and the 99th percentile of /status meanwhile; groups of 64 small sequences
per second; cost of a request and memory with 10 to 100,000 groups queued. Clients are processes of their own.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import random
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from typing import Any

import psutil

START_SECONDS = 120
PROBE_PAUSE = 0.002
PROBES = 2
SHOAL, THEIRS = "shoal", "run-api"
THEIR_MOST = 10_000


class Server:
    """A server process on a free port."""

    def __init__(self, name: str, python: str, folder: Path) -> None:
        self.name = name
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        if name == SHOAL:
            words = [
                "shoal.cli",
                "serve",
                "api",
                "--store",
                str(folder / f"{self.port}.sqlite"),
                "--log-level",
                "error",
            ]
            words += ["--max-groups", "200000"]
        else:
            words = ["atroposlib.cli.run_api", "--host", "127.0.0.1"]
        command = [python, "-m", *words, "--port", str(self.port)]
        self.process = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + START_SECONDS
        while not self.answers():
            if time.monotonic() > end or self.process.poll() is not None:
                raise SystemExit(f"{name} did not start: {' '.join(command)}")
            time.sleep(0.2)

    def answers(self) -> bool:
        """Whether it is up."""
        try:
            return self.get("/info")[0] == 200
        except OSError:
            return False

    def get(self, path: str, body: Any = None) -> tuple[int, bytes]:
        """One request on a new connection, gzip taken and left as it is."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=120)
        content = None if body is None else json.dumps(body)
        headers = {"Accept-Encoding": "gzip", "Content-Type": "application/json"}
        connection.request("GET", path, content, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, content

    def post(self, path: str, body: bytes) -> bytes:
        """The same with a body."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        assert answer.status == 200, content[:300]
        return content

    def begin(self, batch_size: int, environment: bool = False) -> None:
        """Empties it and registers a trainer, and an environment."""
        self.get("/reset_data")
        trainer = {
            "wandb_group": "g",
            "wandb_project": "p",
            "batch_size": batch_size,
            "max_token_len": 8192,
            "checkpoint_dir": "",
            "save_checkpoint_interval": 1,
            "starting_step": 0,
            "num_steps": 10**6,
        }
        self.post("/register", json.dumps(trainer).encode())
        if environment:
            self.get("/batch")
            row = {"max_token_length": 8192, "desired_name": "e", "weight": 1.0, "group_size": 1}
            self.post("/register-env", json.dumps(row).encode())

    def memory(self) -> float:
        """MB of the process and its children."""
        process = psutil.Process(self.process.pid)
        return sum(each.memory_info().rss for each in [process, *process.children(recursive=True)]) / 2**20

    def stop(self) -> None:
        """Ends the process and its children."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def made_group(size: int, length: int, seed: int) -> dict[str, Any]:
    """Random tokens with labels and log-probs."""
    rng = random.Random(seed)
    tokens = [[rng.randrange(150_000) for _ in range(length)] for _ in range(size)]
    logprobs = [[-rng.expovariate(2.0) for _ in range(length)] for _ in range(size)]
    scores = [rng.random() for _ in range(size)]
    return {"tokens": tokens, "masks": tokens, "scores": scores, "inference_logprobs": logprobs}


def probe(port: int, stop: Any, results: Any) -> None:
    """Asks for /status again and again on some connections; when each answer was asked for and came."""

    async def ask(times: list[tuple[float, float]]) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while not stop.is_set():
            started = time.perf_counter()
            writer.write(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
            times.append((started, time.perf_counter()))
            await asyncio.sleep(PROBE_PAUSE)
        writer.close()

    async def ask_on_all() -> list[tuple[float, float]]:
        times: list[tuple[float, float]] = []
        await asyncio.gather(*(ask(times) for _ in range(PROBES)))
        return times

    results.put(asyncio.run(ask_on_all()))


def large_batches(server: Server, bodies: list[bytes], count: int) -> dict[str, Any]:
    """Posts 64 x 8192 tokens as 8 groups three times, then fetches `count` such batches while /status is asked. Of its
    answers those are kept that were waited for while a batch was."""
    posted, spans = [], []
    for _ in range(3):
        server.begin(64)
        started = time.perf_counter()
        for body in bodies:
            server.post("/scored_data", body)
        posted.append(time.perf_counter() - started)
    context = multiprocessing.get_context("spawn")
    stop, results = context.Event(), context.Queue()
    prober = context.Process(target=probe, args=(server.port, stop, results))
    prober.start()
    time.sleep(2.0)
    for index in range(count):
        for body in bodies if index else ():
            server.post("/scored_data", body)
        started = time.perf_counter()
        _, content = server.get("/batch")
        spans.append((started, time.perf_counter()))
        assert len(content) > 1_000_000, content[:300]
    stop.set()
    times = results.get(timeout=60)
    prober.join(60)
    during = [end - start for start, end in times if any(start < until and end > since for since, until in spans)]
    fetched = median(until - since for since, until in spans)
    return {"post": median(posted), "batch": fetched, "status": during, "bytes": len(content)}


def posted_per_second(server: Server, body: bytes, count: int, connections: int) -> tuple[float, float]:
    """Groups a second, over several connections that are kept; and the server's CPU milliseconds for one."""
    server.begin(64)
    head = "POST /scored_data HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    selector, done, sent = selectors.DefaultSelector(), 0, connections
    # Bare sockets in one thread: a client that costs less than the servers do.
    sockets = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(connections)]
    process = psutil.Process(server.process.pid)
    before, started = process.cpu_times(), time.perf_counter()
    for each in sockets:
        selector.register(each, selectors.EVENT_READ)
        each.sendall(request)
    while done < count:
        ready = selector.select(60)
        assert ready, f"{server.name} answers no more"
        for key, _ in ready:
            each: Any = key.fileobj
            answer = each.recv(65536)
            while b'"received"' not in answer:
                more = each.recv(65536)
                assert more and answer.startswith(b"HTTP/1.1 200"), answer
                answer += more
            done += 1
            if sent < count:
                sent += 1
                each.sendall(request)
            else:
                selector.unregister(each)
    seconds, after = time.perf_counter() - started, process.cpu_times()
    for each in sockets:
        each.close()
    used = after.user + after.system - before.user - before.system
    return done / seconds, 1000 * used / done


def costs_at(servers: dict[int, Server], repeats: int) -> dict[int, dict[str, float]]:
    """Milliseconds of single requests, medians, by how many one-sequence groups wait; and the memory.

    Every batch of 8 is followed by 8 posts, so that there are as many all the time; the servers take turns.
    """
    body = json.dumps(made_group(1, 16, 0)).encode()
    for queued, server in servers.items():
        server.begin(8, environment=True)
        for start in range(0, queued, 1000):
            several = b"[" + b",".join([body] * min(1000, queued - start)) + b"]"
            server.post("/scored_data_list", several)
        server.get("/batch")
        for _ in range(8):
            server.post("/scored_data", body)
    times: dict[int, dict[str, list[float]]] = {
        queued: {"post": [], "status-env": [], "batch": []} for queued in servers
    }

    def measure(into: list[float], action: Any) -> Any:
        started = time.perf_counter()
        result = action()
        into.append(1000 * (time.perf_counter() - started))
        return result

    for _ in range(repeats):
        for queued, server in servers.items():
            into = times[queued]
            _, content = measure(into["batch"], partial(server.get, "/batch"))
            assert not content.startswith(b'{"batch":null'), content
            for _ in range(8):
                measure(into["post"], partial(server.post, "/scored_data", body))
            measure(into["status-env"], partial(server.get, "/status-env", {"env_id": 0}))
    return {
        queued: {**{name: median(values) for name, values in times[queued].items()}, "MB": server.memory()}
        for queued, server in servers.items()
    }


def percentile(times: list[float], share: float) -> float:
    """Of sorted times, the one at that share."""
    return sorted(times)[min(len(times) - 1, int(share * len(times)))]


def main() -> None:
    """Runs both servers in turn and prints what was measured."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--atropos-python", default=".venv-atropos/bin/python", help="where atroposlib 0.4.0 is installed"
    )
    parser.add_argument("--parts", nargs="*", default=["long", "small", "costs"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=16, help="of Shoal's in a round; of theirs it is one")
    parser.add_argument("--posts", type=int, default=2000)
    parser.add_argument("--connections", type=int, nargs="*", default=[16, 64])
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--queued", type=int, nargs="*", default=[10, 1000, 10_000, 100_000])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:

        def start(name: str) -> Server:
            server = Server(name, sys.executable if name == SHOAL else options.atropos_python, Path(folder))
            stack.callback(server.stop)
            return server

        servers = [start(SHOAL), start(THEIRS)]
        if "long" in options.parts:
            report_long_groups(servers, options)
        if "small" in options.parts:
            report_small_groups(servers, options)
        if "costs" in options.parts:
            report_costs(start, options)


def report_long_groups(servers: list[Server], options: Namespace) -> None:
    """64 x 8192 tokens."""
    bodies = [json.dumps(made_group(8, 8192, seed)).encode() for seed in range(8)]
    print(f"64 x 8192 tokens: {sum(map(len, bodies)) / 1e6:.1f} MB of JSON in 8 groups")
    rounds: dict[str, list[dict[str, Any]]] = {server.name: [] for server in servers}
    for _ in range(options.rounds):
        for server in servers:
            rounds[server.name].append(large_batches(server, bodies, options.batches if server.name == SHOAL else 1))
    for name, results in rounds.items():
        times = [each for result in results for each in result["status"]]
        print(
            f"  {name:<8} /batch {median(r['batch'] for r in results):.3f} s ({results[0]['bytes'] / 1e6:.1f} MB), "
            f"8 posts {median(r['post'] for r in results):.2f} s, /status meanwhile: 99th percentile "
            f"{1000 * percentile(times, 0.99):.1f} ms, longest {1000 * max(times):.1f} ms of {len(times)}"
        )
    for what in ("batch", "post"):
        ratios = [b[what] / a[what] for a, b in zip(rounds[SHOAL], rounds[THEIRS], strict=True)]
        print(f"  {THEIRS} / {SHOAL}, {what}: {median(ratios):.1f}")


def report_small_groups(servers: list[Server], options: Namespace) -> None:
    """64 small sequences."""
    for length in (8, 32):
        body = json.dumps(made_group(64, length, 0)).encode()
        for connections in options.connections:
            print(f"64 sequences of {length} tokens, {len(body) / 1e3:.0f} kB, {connections} connections")
            speeds: dict[str, list[tuple[float, float]]] = {server.name: [] for server in servers}
            for turn in range(2 * options.rounds):
                for server in servers[:: 1 if turn % 2 else -1]:
                    speeds[server.name].append(posted_per_second(server, body, options.posts, connections))
            for name, values in speeds.items():
                speed, used = (median(value[index] for value in values) for index in (0, 1))
                print(f"  {name:<8} {speed:.0f} groups/s, {used:.2f} CPU ms each")
            pairs = list(zip(speeds[SHOAL], speeds[THEIRS], strict=True))
            faster, less = median(a[0] / b[0] for a, b in pairs), median(b[1] / a[1] for a, b in pairs)
            print(f"  {SHOAL} / {THEIRS}: {faster:.1f} times the groups a second, {less:.1f} times by CPU time")


def report_costs(start: Callable[[str], Server], options: Namespace) -> None:
    """By groups queued. Theirs searches the whole queue at each request: at 100,000 groups that takes minutes."""
    print("ms of a request, and MB, by groups queued")
    for name in (SHOAL, THEIRS):
        depths = [queued for queued in options.queued if name == SHOAL or queued <= THEIR_MOST]
        costs = costs_at({queued: start(name) for queued in depths}, options.repeats)
        for queued, values in costs.items():
            print(f"  {queued:>7} {name:<8} " + ", ".join(f"{what} {value:.2f}" for what, value in values.items()))
        ratios = {
            what: max(each[what] for each in costs.values()) / min(each[what] for each in costs.values())
            for what in costs[depths[0]]
        }
        print(f"  largest / smallest, {name}: " + ", ".join(f"{what} {ratio:.2f}" for what, ratio in ratios.items()))


if __name__ == "__main__":
    main()
