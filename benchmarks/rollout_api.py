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
import signal
import socket
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from typing import Any

import psutil

START_SECONDS = 120
PROBE_PAUSE = 0.002
THEIR_MOST = 10_000


class Server:
    """A server process on a free port."""

    def __init__(self, name: str, python: str, folder: Path) -> None:
        self.name = name
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        if name == "shoal":
            words = ["shoal.cli", "serve", "api", "--store", str(folder / "groups.sqlite"), "--log-level", "error"]
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
    """Asks for /status again and again on one connection; the seconds that each answer took."""
    connection = HTTPConnection("127.0.0.1", port, timeout=120)
    times = []
    while not stop.is_set():
        started = time.perf_counter()
        connection.request("GET", "/status")
        connection.getresponse().read()
        times.append(time.perf_counter() - started)
        time.sleep(PROBE_PAUSE)
    results.put(times)


def large_batch(server: Server, bodies: list[bytes]) -> dict[str, Any]:
    """One round: post 64 x 8192 tokens as 8 groups, fetch them; /status is asked meanwhile."""
    server.begin(64)
    started = time.perf_counter()
    for body in bodies:
        server.post("/scored_data", body)
    posted = time.perf_counter() - started
    context = multiprocessing.get_context("spawn")
    stop, results = context.Event(), context.Queue()
    prober = context.Process(target=probe, args=(server.port, stop, results))
    prober.start()
    time.sleep(1.5)
    started = time.perf_counter()
    _, content = server.get("/batch")
    fetched = time.perf_counter() - started
    # As many samples after the batch as fit into the slowest server's time would hide the stall: stop at once.
    stop.set()
    times = results.get(timeout=60)
    prober.join(60)
    during = times[-max(1, int(fetched / (PROBE_PAUSE + median(times)))) - 1 :]
    assert len(content) > 1_000_000, content[:300]
    return {"post": posted, "batch": fetched, "status": during, "bytes": len(content)}


def posted_per_second(server: Server, body: bytes, count: int, connections: int) -> tuple[float, float]:
    """Groups a second, over several connections that are kept; and the server's CPU milliseconds for one."""
    server.begin(64)
    head = "POST /scored_data HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    async def connection(share: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for _ in range(share):
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200"), answer
            await reader.readexactly(int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
        writer.close()

    async def all_connections() -> None:
        await asyncio.gather(*(connection(count // connections) for _ in range(connections)))

    done, process = count // connections * connections, psutil.Process(server.process.pid)
    before, started = process.cpu_times(), time.perf_counter()
    asyncio.run(all_connections())
    seconds, after = time.perf_counter() - started, process.cpu_times()
    used = after.user + after.system - before.user - before.system
    return done / seconds, 1000 * used / done


def cost_at(server: Server, queued: int, repeats: int) -> dict[str, float]:
    """Milliseconds of single requests while `queued` one-sequence groups wait, medians; and the memory."""
    server.begin(8, environment=True)
    small = made_group(1, 16, 0)
    for start in range(0, queued, 1000):
        server.post("/scored_data_list", json.dumps([small] * min(1000, queued - start)).encode())
    body = json.dumps(small).encode()

    def milliseconds(action: Any) -> float:
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            action()
            times.append(1000 * (time.perf_counter() - started))
        return median(times)

    return {
        "post": milliseconds(lambda: server.post("/scored_data", body)),
        "status-env": milliseconds(lambda: server.get("/status-env", {"env_id": 0})),
        # Their server forms all batches at the first request: that one is part of the mean here.
        "batch": milliseconds(lambda: server.get("/batch")),
        "MB": server.memory(),
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
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--posts", type=int, default=2000)
    parser.add_argument("--queued", type=int, nargs="*", default=[10, 1000, 10_000, 100_000])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        servers = [
            Server("shoal", sys.executable, Path(folder)),
            Server("run-api", options.atropos_python, Path(folder)),
        ]
        try:
            report(servers, options)
        finally:
            for server in servers:
                server.stop()


def report(servers: list[Server], options: Namespace) -> None:
    """The three parts."""
    shoal, theirs = (server.name for server in servers)
    bodies = [json.dumps(made_group(8, 8192, seed)).encode() for seed in range(8)]
    print(f"64 x 8192 tokens: {sum(map(len, bodies)) / 1e6:.1f} MB of JSON in 8 groups")
    rounds: dict[str, list[dict[str, Any]]] = {server.name: [] for server in servers}
    for _ in range(options.rounds):
        for server in servers:
            rounds[server.name].append(large_batch(server, bodies))
    for name, results in rounds.items():
        times = [each for result in results for each in result["status"]]
        print(
            f"  {name:<8} /batch {median(r['batch'] for r in results):.3f} s ({results[0]['bytes'] / 1e6:.1f} MB), "
            f"8 posts {median(r['post'] for r in results):.2f} s, /status meanwhile: 99th percentile "
            f"{1000 * percentile(times, 0.99):.1f} ms, longest {1000 * max(times):.1f} ms of {len(times)}"
        )
    ratios = [b["batch"] / a["batch"] for a, b in zip(rounds[shoal], rounds[theirs], strict=True)]
    print(f"  {theirs} / {shoal}, /batch: {median(ratios):.1f}")
    for length in (8, 32):
        body = json.dumps(made_group(64, length, 0)).encode()
        print(f"64 sequences of {length} tokens, {len(body) / 1e3:.0f} kB, 16 connections")
        speeds: dict[str, list[tuple[float, float]]] = {server.name: [] for server in servers}
        for _ in range(options.rounds):
            for server in servers:
                speeds[server.name].append(posted_per_second(server, body, options.posts, 16))
        for name, values in speeds.items():
            speed, used = (median(value[index] for value in values) for index in (0, 1))
            print(f"  {name:<8} {speed:.0f} groups/s, {used:.2f} CPU ms each")
        pairs = list(zip(speeds[shoal], speeds[theirs], strict=True))
        print(f"  {shoal} / {theirs}: {median(a[0] / b[0] for a, b in pairs):.1f} times the groups a second, ", end="")
        print(f"{median(b[1] / a[1] for a, b in pairs):.1f} times by CPU time")
    print("ms of a request, and MB, by groups queued")
    for queued in options.queued:
        # Theirs searches the whole queue at each request: at 100,000 groups that takes minutes.
        for server in servers if queued <= THEIR_MOST else servers[:1]:
            costs = cost_at(server, queued, 30)
            print(
                f"  {queued:>7} {server.name:<8} " + ", ".join(f"{name} {value:.2f}" for name, value in costs.items())
            )


if __name__ == "__main__":
    main()
